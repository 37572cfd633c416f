#!/usr/bin/env bash
# With normalize_activations="layer_norm", SAELens' `decode(features)` is not a function of the features: it undoes
# the layer norm of whatever the SAE encoded last. It also uses that up, so the next `decode` fails.
#
# What one expects: `decode` maps features to activations; encode x, encode y, then decode x's features gives x's
# reconstruction. SAELens offers encode and decode as separate calls for such uses.
#
# What happens: `encode` leaves the mean and standard deviation of its input on the SAE as `ln_mu` and `ln_std`;
# `decode` scales and shifts by them, then deletes them.
#
# Seen on 2026-11-27 with sae-lens 6.54.12, torch 2.13.0, transformers 5.23.0, transformer-lens 3.9.0 (y = 10 x):
#   decode(features of x), x encoded last: 1.0 times the reconstruction of x
#   decode(features of x), y encoded last: 10.0 times the reconstruction of x
#   a second decode without an encode before it: AttributeError, no attribute 'ln_std'
#
# Why it matters for SAEs: comparing clean and edited features, or swapping one prompt's features into another's,
# encodes both prompts before it decodes. The reconstruction then has the wrong prompt's scale and offset (tensors of
# the same shape), and what is spliced into the model is off by the ratio of their deviations.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0 sae-lens==6.54.12
"$tmp/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from sae_lens import StandardSAE, StandardSAEConfig

torch.manual_seed(0)
sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=64, normalize_activations="layer_norm"))
x = torch.randn(8, 16)
y = 10 * x

with torch.no_grad():
    features = sae.encode(x)
    reconstruction = sae.decode(features)
    try:
        sae.decode(features)
        second = "works"
    except AttributeError as error:
        second = f"AttributeError: {error}"
    sae.encode(x)
    after_x = sae.decode(features)
    sae.encode(y)
    after_y = sae.decode(features)


def ratio(a):
    return (a.norm() / reconstruction.norm()).item()


print(f"the same features decoded: x encoded last {ratio(after_x):.3f}, y encoded last {ratio(after_y):.3f} times as large")
print("second decode:", second)
if not torch.allclose(after_x, reconstruction):
    sys.exit("changed: decoding is no longer the same right after encoding the same input")
if not torch.allclose(after_y, 10 * reconstruction, rtol=1e-3, atol=1e-4):
    sys.exit("changed: decode no longer uses the layer norm of the input encoded last")
if "ln_std" not in second:
    sys.exit("changed: a second decode no longer fails for want of ln_std")
EOF
