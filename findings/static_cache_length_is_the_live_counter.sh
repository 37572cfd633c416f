#!/usr/bin/env bash
# `StaticCache.get_seq_length()` returns the cache's own counter, not its value: a length taken before a forward pass
# has changed after it.
#
# What one expects: an integer, or at least a tensor of one's own, as `DynamicCache` gives. `start =
# cache.get_seq_length()` before a pass is where that pass's tokens begin.
#
# What happens: once a static layer holds tokens, its length is a 0-d tensor that the layer counts up in place, and
# that very tensor is returned. All lengths ever taken are one object. (Before the first token, it is the int 0.)
#
# Seen on 2026-11-27 with torch 2.13.0 and transformers 5.23.0, 5 tokens and then three single ones, lengths taken
# before each pass and read after the last:
#   DynamicCache: [0, 5, 6, 7]
#   StaticCache:  [0, 8, 8, 8]
#
# Why it matters for SAEs: a hook that notes where a pass starts, to find position 0 or to label cached features with
# their positions, is right with the default cache and shifted with the static one (made for compiled generation). The
# first pass is right in both, so a test without a prefix passes.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$tmp/venv/bin/python" - <<'EOF'
import sys

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
model = LlamaForCausalLM(config).eval()


def starts(cache):
    taken = []
    with torch.no_grad():
        for ids in (torch.arange(5)[None], *[torch.tensor([[i]]) for i in range(3)]):
            taken.append(cache.get_seq_length())
            model(ids, past_key_values=cache)
    return taken


dynamic = starts(DynamicCache(config=config))
static = starts(StaticCache(config=config, max_cache_len=16))
one_object = all(a is static[1] for a in static[1:])
print("DynamicCache:", [int(n) for n in dynamic])
print("StaticCache: ", [int(n) for n in static], "- one object:", one_object)
if [int(n) for n in dynamic] != [0, 5, 6, 7]:
    sys.exit("changed: DynamicCache no longer gives the length at the time of the call")
if [int(n) for n in static] != [0, 8, 8, 8] or not one_object:
    sys.exit("changed: StaticCache no longer returns its live counter")
EOF
