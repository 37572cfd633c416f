#!/usr/bin/env bash
# Hooks on a PeftModel run in its forward pass and never in its generate().
#
# What one expects: generate() runs the model once a token, so a forward hook or pre-hook registered on the model (to
# count passes, to note token ids and positions, to steer) runs once a token too, as it does on a plain transformers model.
#
# What happens: `PeftModelForCausalLM.generate` hands over to the wrapped model's own generate, which calls the wrapped
# model, not the PeftModel. Hooks on the outermost module are passed by without a word; those on the wrapped model
# (`get_base_model()`), or on any module in it, run.
#
# Seen on 2026-11-28 with torch 2.13.0, transformers 5.23.0, peft 0.21.2 (tiny random Llama):
#   plain model: forward 1, generate of 5 tokens 5; PeftModel: forward 1, generate 0; its get_base_model(): 1 and 5
#
# Why it matters for SAEs: a hook that tells positions (BOS, exempt tokens) to a splice in the layers works in every
# evaluation by forward passes, and is silent in every generated text as soon as an adapter is on.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$tmp/venv/bin/python" -W ignore::FutureWarning - <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
torch.manual_seed(0)
ids = torch.arange(3, 9)[None]


def counted(hooked, run):
    """How often a forward hook of ``hooked`` runs in a forward pass of ``run``, and while it generates 5 tokens."""
    seen = []
    handle = hooked.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        run(input_ids=ids)
        forward = len(seen)
        run.generate(input_ids=ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    handle.remove()
    return forward, len(seen) - forward


plain = LlamaForCausalLM(config).eval()
alone = counted(plain, plain)
wrapped = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
outer, inner = counted(wrapped, wrapped), counted(wrapped.get_base_model(), wrapped)
print("plain model:", alone, "- PeftModel:", outer, "- get_base_model():", inner)
if alone != (1, 5):
    sys.exit("changed: a plain model's generate no longer calls its hooks once a token")
if outer != (1, 0):
    sys.exit("changed: hooks of a PeftModel now run in generate, or no longer in forward")
if inner != (1, 5):
    sys.exit("changed: hooks of the wrapped model no longer run once a pass")
EOF
