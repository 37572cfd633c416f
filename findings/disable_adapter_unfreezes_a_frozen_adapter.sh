#!/usr/bin/env bash
# Leaving PEFT's `with model.disable_adapter():` makes a frozen adapter trainable.
#
# What one expects: the block puts the model back as it found it. An adapter loaded for inference (the default of
# `PeftModel.from_pretrained`) has requires_grad False; so it should after the block.
#
# What happens: on leaving the block PEFT activates the adapter again, and that sets requires_grad to True on all of
# its parameters, whatever they had before: on an adapter loaded for inference, and on a matrix frozen by hand. The
# adapter's config goes on saying inference_mode=True.
#
# Seen on 2026-11-27 with torch 2.13.0, transformers 5.23.0, peft 0.21.2 (LoRA on q_proj of two layers: 4 matrices):
#   loaded for inference: 0 trainable before the block, 0 inside, 4 after it
#   one lora_A of a trainable adapter frozen by hand: 3 before the block, 0 inside, 4 after it
#   after the block, a backward pass through the loaded adapter fills .grad of both lora_A and lora_B
#
# Why it matters for SAEs: the base model's logits are the natural reference for "SAE plus LoRA", and disable_adapter
# is how one gets them without a second copy. One such reference pass, and `[p for p in model.parameters() if
# p.requires_grad]` holds an adapter that was to stay as it is: training an SAE or a second adapter end to end moves
# it.
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
    return LlamaForCausalLM(config)


def around_block(model):
    """Trainable tensors before, inside and after a disable_adapter block."""

    def trainable():
        return sum(p.requires_grad for p in model.parameters())

    before = trainable()
    with model.disable_adapter():
        inside = trainable()
    return before, inside, trainable()


trained = get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
trained.save_pretrained(folder)
next(p for name, p in trained.named_parameters() if "lora_A" in name).requires_grad_(False)
by_hand = around_block(trained)

loaded = PeftModel.from_pretrained(base(), folder)
for_inference = around_block(loaded)
loaded(torch.arange(8)[None]).logits.sum().backward()
with_grad = sum(p.grad is not None and bool(p.grad.any()) for p in loaded.parameters())

print("loaded for inference (before, inside, after):", for_inference)
print("one matrix frozen by hand (before, inside, after):", by_hand)
print("tensors with a gradient after a backward pass:", with_grad)
print("inference_mode of the config:", loaded.peft_config["default"].inference_mode)
if for_inference != (0, 0, 4) or with_grad != 4:
    sys.exit("changed: a disable_adapter block no longer makes an adapter loaded for inference trainable")
if by_hand != (3, 0, 4):
    sys.exit("changed: a disable_adapter block no longer unfreezes a matrix that was frozen by hand")
if loaded.peft_config["default"].inference_mode is not True:
    sys.exit("changed: the config no longer says inference_mode=True")
EOF
