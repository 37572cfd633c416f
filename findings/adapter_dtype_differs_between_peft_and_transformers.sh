#!/usr/bin/env bash
# One LoRA file on one bfloat16 model gives two sets of logits: PEFT loads the adapter in float32, transformers' own
# `model.load_adapter` loads it in bfloat16.
#
# What one expects: `model.load_adapter(folder)` of transformers is the same adapter through a shorter door; it uses
# PEFT underneath. The weights in the file are float32, and loading them into one model gives one result.
#
# What happens: `PeftModel.from_pretrained` keeps adapters of half-precision models in float32 unless told otherwise
# (`autocast_adapter_dtype=True`) and computes the LoRA branch in float32. transformers loads the weights in the
# model's dtype. With autocast_adapter_dtype=False, PEFT gives bit for bit what transformers gives.
#
# Seen on 2026-11-27 with torch 2.13.0, transformers 5.23.0, peft 0.21.2 (tiny random Llama in bfloat16):
#   float32 with PEFT, bfloat16 with transformers; logits differ in 78 % of the entries, by 0.0049 at most
#   autocast_adapter_dtype=False: bfloat16, logits equal to those of transformers
#
# Why it matters for SAEs: a LoRA around an SAE repairs a small damage, so small shifts count. Loaded in one way for
# training and in the other for evaluation, the logits and the features near their thresholds move without a cause in
# the weights.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$tmp/venv/bin/python" -W ignore::FutureWarning - "$tmp/adapter" <<'EOF'
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

folder = sys.argv[1]
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def look(model):
    """The dtypes of the LoRA matrices, and the logits."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    return {p.dtype for name, p in model.named_parameters() if "lora_" in name}, logits


get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).save_pretrained(folder)

peft_dtypes, peft_logits = look(PeftModel.from_pretrained(base(), folder))
same_dtypes, same_logits = look(PeftModel.from_pretrained(base(), folder, autocast_adapter_dtype=False))
model = base()
model.load_adapter(folder)
own_dtypes, own_logits = look(model)
_, base_logits = look(base())

print("dtypes with PEFT:", peft_dtypes, "- with transformers:", own_dtypes)
differ = (peft_logits != own_logits).float().mean().item()
print(f"share of logits that differ: {differ:.2f}; largest {(peft_logits - own_logits).abs().max().item():.4f},", end=" ")
print(f"the adapter's whole effect {(peft_logits - base_logits).abs().max().item():.4f}")
print("with autocast_adapter_dtype=False:", same_dtypes, "- equal to transformers:", torch.equal(same_logits, own_logits))
if torch.equal(own_logits, base_logits):
    sys.exit("changed: transformers no longer applies the adapter at all")
if peft_dtypes != {torch.float32} or own_dtypes != {torch.bfloat16}:
    sys.exit("changed: the two now load the adapter in the same dtype")
if differ < 0.1:
    sys.exit("changed: the logits are now (nearly) the same")
if not torch.equal(same_logits, own_logits):
    sys.exit("changed: autocast_adapter_dtype=False no longer gives what transformers gives")
EOF
