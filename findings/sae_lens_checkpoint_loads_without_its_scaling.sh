#!/usr/bin/env bash
# A checkpoint that SAELens writes during training with normalize_activations="expected_average_only_in" loads as an
# SAE that scales nothing; only the checkpoint written at the end is fit for unscaled activations. Both load without a
# word.
#
# What one expects: `SAE.load_from_disk` on any checkpoint gives the SAE as it was at that step. The config says that
# activations are normalised, as it does with "layer_norm", for which the loaded SAE does normalise.
#
# What happens: the trainer scales the activations outside of the SAE and folds the factor into the weights after the
# last step. An earlier checkpoint has unfolded weights, with the factor in activation_scaler.json next to them.
# `load_from_disk` does not read that file, and the loaded SAE runs as with "none".
#
# Seen on 2026-11-27 with sae-lens 6.54.12, torch 2.13.0, transformers 5.23.0, transformer-lens 3.9.0: an SAE trained
# on synthetic activations, fraction of variance unexplained on them:
#   checkpoint at half time, as loaded: 0.01268; with the factor 11.08 of its activation_scaler.json by hand: 0.00042
#   final checkpoint, as loaded:        0.00011; its config says "none"
#
# Why it matters for SAEs: whoever splices checkpoints to see how the loss of the spliced model falls in training gets
# encoder biases that are too large or too small by the factor, thus wrong features, in all checkpoints but the last.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0 sae-lens==6.54.12
"$tmp/venv/bin/python" -W ignore - "$tmp/checkpoints" 2>"$tmp/progress" <<'EOF' || { tail -n 5 "$tmp/progress"; exit 1; }
import json
import pathlib
import sys

import torch
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

folder = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
directions = 0.05 * torch.randn(8, 16)


def activations():
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.relu(torch.randn(256, 8, generator=generator)) @ directions


sae = StandardTrainingSAE(
    StandardTrainingSAEConfig(d_in=16, d_sae=64, l1_coefficient=0.01, normalize_activations="expected_average_only_in")
)
config = SAETrainerConfig(
    total_training_samples=256 * 600,
    train_batch_size_samples=256,
    lr=3e-3,
    lr_end=3e-4,
    n_checkpoints=1,
    checkpoint_path=str(folder),
    save_final_checkpoint=True,
    n_batches_for_norm_estimate=20,
)
SAETrainer(config, sae, activations()).fit()
x = next(activations())


def unexplained(reconstruction):
    return ((reconstruction - x).square().sum() / (x - x.mean(0)).square().sum()).item()


found = {}
for path in folder.iterdir():
    loaded = SAE.load_from_disk(path)
    factor = json.loads((path / "activation_scaler.json").read_text())["scaling_factor"] or 1.0
    with torch.no_grad():
        raw, scaled = unexplained(loaded(x)), unexplained(loaded(x * factor) / factor)
    name = "final" if path.name.startswith("final") else "half time"
    found[name] = (loaded.cfg.normalize_activations, raw, scaled)
    print(f"{name}: {found[name][0]}, unexplained as loaded {raw:.5f}, with the factor {factor:.3f} {scaled:.5f}")
if found["final"][0] != "none" or found["final"][1] > 0.01:
    sys.exit("changed: the final checkpoint is no longer folded")
kind, raw, scaled = found["half time"]
if kind != "expected_average_only_in" or scaled > 0.02:
    sys.exit("changed: the earlier checkpoint no longer is an unfolded one that works with its factor")
if raw < 5 * scaled:
    sys.exit("changed: the earlier checkpoint now works on unscaled activations")
EOF
