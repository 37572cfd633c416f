#!/usr/bin/env bash
# SAELens says that Gemma Scope 2's transcoders read "blocks.N.hook_mlp_in". In TransformerLens the hook of that name
# stands before the norm; the transcoders were trained on what stands behind it.
#
# What one expects: the hook name in an SAE's configuration is the place in TransformerLens whose activation it takes.
#
# What happens: for a transcoder of google/gemma-scope-2-* SAELens' loader gives hook_name "blocks.N.hook_mlp_in".
# Where a repository has no configuration the same loader fills in "model.layers.N.pre_feedforward_layernorm.output",
# what the MLP reads. TransformerLens' hook_mlp_in is the residual stream that the norm has yet to see; what the MLP
# reads has no name of its own there but ln2's output (ln2.hook_normalized is that before the gain).
#
# Seen on 2026-11-27 with sae-lens 6.54.12, transformer-lens 3.9.0, torch 2.13.0, on a tiny model with RMS norm:
#   hook_mlp_in against the residual stream (hook_resid_mid): 0.0 apart; against what the MLP reads: 0.34 of its norm
#
# Why it matters: both tensors have the width of the model, so a transcoder takes either without complaint. It then
# reads inputs of another scale and direction, and its latents and its cross entropy mean nothing.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0 sae-lens==6.54.12
"$tmp/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from transformer_lens import HookedTransformer, HookedTransformerConfig

REPO, FOLDER = "google/gemma-scope-2-270m-pt", "transcoder_all/layer_1_width_16k_l0_small_affine"
theirs = loaders._infer_gemma_3_raw_cfg_dict(REPO, FOLDER)["hf_hook_point_in"]


def no_file(*args, **kwargs):
    raise loaders.EntryNotFoundError("nothing is fetched here")


# the two things that the loader would ask the hub for: a configuration (absent) and the weights' shapes
loaders.hf_hub_download = no_file
loaders.get_safetensors_tensor_shapes = lambda *args, **kwargs: {"w_enc": [640, 16384], "w_dec": [16384, 640]}
named = loaders.get_gemma_3_config_from_hf(REPO, FOLDER, "cpu")["hook_name"]
print("SAELens' name of the input:", named, "| its Hugging Face name:", theirs)

torch.manual_seed(0)
config = HookedTransformerConfig(
    n_layers=2, d_model=32, n_ctx=16, d_head=8, n_heads=4, d_vocab=50, d_mlp=64, act_fn="gelu", normalization_type="RMS",
    use_hook_mlp_in=True, device="cpu", seed=0,
)  # fmt: skip
model = HookedTransformer(config)
with torch.no_grad():
    for block in model.blocks:
        block.ln2.w.mul_(torch.rand(32) + 0.5)  # a gain, as trained norms have it
read = {}
model.blocks[1].mlp.register_forward_pre_hook(lambda module, args: read.update(mlp=args[0]))
_, cache = model.run_with_cache(torch.arange(10)[None])
at_hook, stream = cache["blocks.1.hook_mlp_in"], cache["blocks.1.hook_resid_mid"]


def apart(a, b):
    return ((a - b).norm() / b.norm()).item()


to_stream, to_read = apart(at_hook, stream), apart(at_hook, read["mlp"])
print(f"hook_mlp_in to the residual stream: {to_stream:.2g}, to what the MLP reads: {to_read:.2g} (of its norm)")
if named != "blocks.1.hook_mlp_in" or theirs != "model.layers.1.pre_feedforward_layernorm.output":
    sys.exit("changed: SAELens names the input of these transcoders otherwise now")
if to_stream > 1e-6:
    sys.exit("changed: hook_mlp_in is no longer the residual stream before the norm")
if to_read < 0.1:
    sys.exit("changed: hook_mlp_in is what the MLP reads now")
PY
