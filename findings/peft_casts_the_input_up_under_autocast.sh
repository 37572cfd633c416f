#!/usr/bin/env bash
# Under autocast, PEFT casts the input of every LoRA layer up to float32, and autocast casts it down again: two passes over
# each activation, back and forth, for a product that is made in bfloat16 as it would have been without them.
#
# What one expects: a bfloat16 model run under bfloat16 autocast has bfloat16 activations; a LoRA layer with float32
# weights (PEFT's default for adapters of half-precision models) has its weights cast by autocast, like any linear layer, and its
# input left alone.
#
# What happens: LoRA's forward casts its input to the dtype of lora_A's weight before it calls lora_A, whether or not autocast is
# on. Inside, autocast casts the float32 input back to bfloat16. The numbers are the same (bfloat16 to float32 and back is exact);
# the two copies of each adapted layer's input, and two more of its gradient, are not free: on one H100 they took about
# 20 ms of a 226 ms training step of a 2B model. peft.helpers.disable_input_dtype_casting leaves the first one out.
#
# Seen on 2026-11-27 with peft 0.21.2, transformers 5.23.0, torch 2.13.0, a tiny Llama in bfloat16, LoRA on 7 linears of 2 layers,
# one forward pass: casts of activations between bfloat16 and float32 in adapted layers: 28 (two for each of 14 layers); with
# disable_input_dtype_casting: 0; logits equal to the last bit.
#
# Why it matters here: whoever adapts a model around an SAE does so with adapters on every linear layer.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$tmp/venv/bin/python" -W ignore - <<'PY'
import sys
import traceback

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = (1, 11)


class Casts(TorchDispatchMode):
    """Counts casts of activations [1, 11, width] that are made from within a LoRA layer."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and tuple(args[0].shape[:2]) == TOKENS:
            if any("peft/tuners/lora" in frame.filename for frame in traceback.extract_stack()):
                self.n += (kwargs or {}).get("dtype") not in (None, args[0].dtype)
        return func(*args, **(kwargs or {}))


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
model = LlamaForCausalLM(config).to(torch.bfloat16)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
print("adapter weights:", {p.dtype for n, p in model.named_parameters() if "lora_" in n})
ids = torch.arange(TOKENS[1])[None]


def run():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts() as casts:
        return model(ids).logits, casts.n


as_it_is, n = run()
with disable_input_dtype_casting(model):
    without, n_without = run()
print("casts of activations in LoRA layers:", n, "with input casting off:", n_without)
print("same logits:", torch.equal(as_it_is, without))
if n != 28:
    sys.exit("changed: another number of casts")
if n_without != 0 or not torch.equal(as_it_is, without):
    sys.exit("changed: leaving the casts out no longer gives the same numbers without casts")
PY
