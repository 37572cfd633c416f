#!/usr/bin/env bash
# After `merge_adapter()` on a bfloat16 model, PEFT's `with model.disable_adapter():` does not give the base model,
# and it leaves the adapter unmerged on changed weights.
#
# What one expects: disable_adapter gives the base model, as it exactly does when nothing is merged; and leaves the
# model as it was, merged.
#
# What happens: a forward pass inside the block takes the merged adapter out by subtracting its product again. The sum
# had been rounded to bfloat16, so the subtraction does not give the old weights back. Nothing merges it again when
# the block is left. Each further round of merge and block starts from the drifted weights.
#
# Seen on 2026-11-27 with torch 2.13.0, transformers 5.23.0, peft 0.21.2 (LoRA on q_proj and v_proj of two layers):
#   never merged: logits inside the block equal the base model's, 0 of 4096 weights changed
#   merged once:  logits inside the block off by 0.0034, 3051 of 4096 weights changed, no longer merged
#
# Why it matters for SAEs: merged weights are what one keeps for speed while an SAE is spliced in, and the block is
# how the clean reference for loss recovered or KL is taken. That reference is then another model than the one
# published, and so is the base under the adapter from there on.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$tmp/venv/bin/python" -W ignore::FutureWarning - <<'EOF'
import copy
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
base = LlamaForCausalLM(config).to(torch.bfloat16).eval()
weights = copy.deepcopy(base.state_dict())
ids = torch.arange(16)[None]


def changed(model):
    """How many weights under the adapter differ from the base model's, and how many there are."""
    now = {k: v for k, v in model.get_base_model().state_dict().items() if ".base_layer." in k}
    return sum(int((v != weights[k.replace(".base_layer", "")]).sum()) for k, v in now.items()), sum(
        v.numel() for v in now.values()
    )


with torch.no_grad():
    clean = base(ids).logits
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    with model.disable_adapter():
        unmerged_equal = torch.equal(model(ids).logits, clean)
    unmerged_changed, total = changed(model)

    model.merge_adapter()
    with model.disable_adapter():
        logits = model(ids).logits
    merged_changed, _ = changed(model)
    still_merged = model.get_base_model().model.layers[0].self_attn.q_proj.merged

print(f"never merged: equal to the base model {unmerged_equal}, weights changed {unmerged_changed} of {total}")
print(f"merged once: logits off by {(logits - clean).abs().max().item():.4f} at most, weights changed {merged_changed} of {total},", end=" ")
print("still merged:", still_merged)
if not unmerged_equal or unmerged_changed:
    sys.exit("changed: without a merge, disable_adapter no longer gives the base model exactly")
if torch.equal(logits, clean) or merged_changed < total // 10:
    sys.exit("changed: after a merge, disable_adapter now gives the base model back")
if still_merged:
    sys.exit("changed: the adapter is merged again when the block is left")
EOF
