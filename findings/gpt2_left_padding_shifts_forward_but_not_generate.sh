#!/usr/bin/env bash
# For one left-padded batch with one attention_mask, GPT-2's `forward` and `generate` compute different activations:
# `generate` takes positions from the mask, `forward` counts the padding as positions.
#
# What one expects: the mask is passed, so the real tokens are computed as without padding, in both.
#
# What happens: `forward` numbers the positions 0, 1, 2, ... from the first pad token. GPT-2's position embeddings are
# absolute, so all hidden states of a padded row change. `generate` derives position_ids from the mask. Llama's
# rotary embedding is relative, and does not notice.
#
# Seen on 2026-11-27 with torch 2.13.0 and transformers 5.23.0: 8 tokens behind 3 pad tokens, hidden_states[2] of the
# real tokens, norm of the difference from the unpadded row relative to that row:
#   GPT-2: forward 1.04, generate 0.0000000
#   Llama: forward 0.0000000, generate 0.0000000
#
# Why it matters for SAEs: activations are collected with forward, but text comes from generate. On
# GPT-2, with its many public SAEs, the features of a short prompt then depend on the longest prompt of its batch, and
# those seen in forward are not those seen while generating. A test on a rotary model passes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$tmp/venv/bin/python" - <<'EOF'
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

configs = {
    "GPT-2": GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0),
    "Llama": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4
    ),
}
ids = torch.arange(1, 9)[None]
padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
mask = (padded > 0).long()
found = {}
for name, config in configs.items():
    torch.manual_seed(0)
    model = (GPT2LMHeadModel if name == "GPT-2" else LlamaForCausalLM)(config).eval()
    with torch.no_grad():
        plain = model(ids, output_hidden_states=True).hidden_states[2]
        forward = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[2][:, 3:]
        generate = model.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
            output_hidden_states=True,
            return_dict_in_generate=True,
        ).hidden_states[0][2][:, 3:]
    found[name] = [((plain - got).norm() / plain.norm()).item() for got in (forward, generate)]
    print(f"{name}: forward {found[name][0]:.7f}, generate {found[name][1]:.7f}")
if found["GPT-2"][0] < 0.1:
    sys.exit("changed: GPT-2's forward now takes positions from the attention mask")
if found["GPT-2"][1] > 1e-4 or max(found["Llama"]) > 1e-4:
    sys.exit("changed: generate, or Llama, now depends on left padding")
EOF
