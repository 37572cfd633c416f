#!/usr/bin/env bash
# SAELens 6 loads an SAE that SAELens 5 saved with the activation function "tanh-relu" as a plain ReLU SAE, silently.
#
# What one expects: `SAE.load_from_disk` recognises configs from before 6.0 and converts them. An activation function
# that version 6 no longer has should be an error, as an unknown architecture is (KeyError).
#
# What happens: `activation_fn_str` is renamed to `activation_fn`, then all fields that the new config class lacks are
# dropped, this one among them. The standard SAE of version 6 is always ReLU. No error, no warning, weights fit.
#
# Seen on 2026-11-27: one SAE saved by sae-lens 5.10.7, run by it and by sae-lens 6.54.12 (torch 2.13.0,
# transformers 5.23.0, transformer-lens 3.9.0) on the same input:
#   5.10.7:  largest feature 1.000 (tanh keeps it at 1 or below)
#   6.54.12: ReLU, largest feature 5.017; a value of the reconstruction differs by up to 6.711
#
# Why it matters for SAEs: features, reconstruction and every steering strength come from a function that the SAE was
# not trained with, while shapes, L0 and feature indices stay right, so nothing looks broken.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0 sae-lens==6.54.12
"$tmp/venv/bin/pip" install --quiet --no-deps --target "$tmp/old" sae-lens==5.10.7
cd "$tmp"
PYTHONPATH="$tmp/old" "$tmp/venv/bin/python" -W ignore - <<'EOF'
import torch
from sae_lens import SAE, SAEConfig

torch.manual_seed(0)
sae = SAE(
    SAEConfig(
        architecture="standard",
        d_in=16,
        d_sae=64,
        activation_fn_str="tanh-relu",
        apply_b_dec_to_input=True,
        finetuning_scaling_factor=False,
        normalize_activations="none",
        model_name="gpt2-small",
        hook_name="blocks.1.hook_resid_post",
        hook_layer=1,
        hook_head_index=None,
        prepend_bos=True,
        context_size=128,
        dataset_path="none",
        dataset_trust_remote_code=False,
        sae_lens_training_version=None,
        device="cpu",
        dtype="float32",
    )
)
sae.save_model("sae")
x = torch.randn(8, 16) * 3
torch.save({"x": x, "features": sae.encode(x).detach(), "output": sae(x).detach()}, "seen.pt")
EOF
"$tmp/venv/bin/python" - <<'EOF'
import json
import sys
import warnings

import torch

with warnings.catch_warnings(record=True) as caught:
    import sae_lens

    warnings.simplefilter("always")
    caught.clear()
    sae = sae_lens.SAE.load_from_disk("sae")
told = [str(w.message) for w in caught if "activation" in str(w.message) or "tanh" in str(w.message)]
old = torch.load("seen.pt", weights_only=True)
with torch.no_grad():
    features, output = sae.encode(old["x"]), sae(old["x"])
    pre = (old["x"] - sae.b_dec) @ sae.W_enc + sae.b_enc

print("saved as:", json.load(open("sae/cfg.json"))["activation_fn_str"], "- loaded by", sae_lens.__version__, "as:", sae.activation_fn)
print(f"largest feature: {old['features'].max():.3f} when saved, {features.max():.3f} now")
print(f"largest difference of the reconstruction: {(output - old['output']).abs().max():.3f}; warnings: {told}")
torch.testing.assert_close(old["features"], torch.tanh(torch.relu(pre)))
if torch.allclose(features, old["features"], atol=1e-3):
    sys.exit("changed: the SAE gives the features that it was saved with")
if told or not torch.allclose(features, torch.relu(pre)):
    sys.exit("changed: the SAE is not a plain ReLU SAE now, or the loader warns")
EOF
