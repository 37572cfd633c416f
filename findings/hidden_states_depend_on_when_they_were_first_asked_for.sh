#!/usr/bin/env bash
# Whether `output_hidden_states=True` shows what a hook put in place of a decoder layer's output, or what the layer
# itself had computed, depends on whether hidden states were ever asked for before the hook was registered.
#
# What one expects: hidden_states[i + 1] is what layer i handed to layer i + 1, always.
#
# What happens: transformers 5 collects hidden states with forward hooks of its own, which it puts on the layers at
# the first call that asks for them and leaves there. Hooks run in the order of registration. A hook registered before
# that call runs before the collecting one and its output is recorded; a hook registered after it runs later, so the
# record holds the layer's original output, while the next layer does get the replaced one.
#
# Seen on 2026-11-27 with torch 2.13.0 and transformers 5.23.0, hook returning zeros on layer 1 of 3, norm of
# hidden_states[2] and of the input of layer 2:
#   hook registered on a fresh model:                      recorded 0.0,   next layer gets 0.0
#   hidden states asked for once, then hook registered:    recorded 0.411, next layer gets 0.0
#
# Why it matters for SAEs: a script may collect clean activations with output_hidden_states first, then splice the
# SAE with a hook and collect again. The second record shows no reconstruction error at the spliced layer,
# although all layers after it have the SAE's output. The same code without the clean pass shows the error.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$tmp/venv/bin/python" - <<'EOF'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4
)
ids = torch.arange(8)[None]


def norms(asked_before):
    """Norms of what is recorded for layer 1 and of what layer 2 gets, with a hook that zeroes layer 1's output."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    got = []
    with torch.no_grad():
        if asked_before:
            model(ids, output_hidden_states=True)
        model.model.layers[1].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
        model.model.layers[2].register_forward_pre_hook(lambda module, args: got.append(args[0].norm().item()))
        recorded = model(ids, output_hidden_states=True).hidden_states[2].norm().item()
    return recorded, got[-1]


fresh, later = norms(asked_before=False), norms(asked_before=True)
print("hook on a fresh model (recorded, next layer gets):", fresh)
print("hook after hidden states were asked for once:", later)
if fresh != (0.0, 0.0):
    sys.exit("changed: on a fresh model the record no longer shows the hook's output")
if later[1] != 0.0:
    sys.exit("changed: the hook no longer reaches the next layer")
if later[0] < 0.01:
    sys.exit("changed: the record now shows the hook's output whenever hidden states were asked for")
EOF
