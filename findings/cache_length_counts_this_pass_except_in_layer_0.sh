#!/usr/bin/env bash
# Asked inside a forward pass, `past_key_values.get_seq_length()` leaves out the pass's own tokens in a hook on
# decoder layer 0 and counts them in a hook on any other layer.
#
# What one expects: the number of tokens before this pass, the same for all layers of one pass; it is how Hugging Face
# models compute the positions themselves.
#
# What happens: the length is that of one layer's cache, by default that of layer 0. Layer 0's attention appends this
# pass's keys, so from its forward hook on the length has grown. `get_seq_length(i)` in a pre-hook of layer i is
# right.
#
# Seen on 2026-11-27 with torch 2.13.0 and transformers 5.23.0, prompt of 5 tokens, then two decoded tokens,
# pre-hooks:
#   layer 0, get_seq_length():   [0, 5, 6]
#   layer 2, get_seq_length():   [5, 6, 7]
#   layer 2, get_seq_length(2):  [0, 5, 6]
#   layer 2, first of position_ids: [0, 5, 6]
#
# Why it matters for SAEs: a splice that skips BOS or starts at a position takes its start from the cache. Tested on
# layer 0 it is right; on a middle layer the prompt's first token is taken for one at position 5, so BOS goes through
# an SAE that was to leave it alone.
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

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4
)
model = LlamaForCausalLM(config).eval()
seen = {}


def watch(index):
    def hook(module, args, kwargs):
        cache = kwargs["past_key_values"]
        for name, start in (
            ("get_seq_length()", cache.get_seq_length()),
            ("get_seq_length(own layer)", cache.get_seq_length(index)),
            ("position_ids", kwargs["position_ids"][0, 0]),
        ):
            seen.setdefault((index, name), []).append(int(start))

    model.model.layers[index].register_forward_pre_hook(hook, with_kwargs=True)


for index in range(3):
    watch(index)
model.generate(torch.arange(1, 6)[None], max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)

for (index, name), starts in seen.items():
    print(f"layer {index}, {name}: {starts}")
if seen[0, "get_seq_length()"] != [0, 5, 6]:
    sys.exit("changed: layer 0 no longer sees the length before the pass")
if any(seen[i, "get_seq_length()"] != [5, 6, 7] for i in (1, 2)):
    sys.exit("changed: later layers no longer see the length after the pass")
if any(seen[i, name] != [0, 5, 6] for i in range(3) for name in ("get_seq_length(own layer)", "position_ids")):
    sys.exit("changed: the layer's own length or position_ids no longer give the start of the pass")
EOF
