#!/usr/bin/env bash
# From transformers 5.24 on, decoder layers get the cache as `cache` rather than `past_key_values`. A forward pre-hook
# that looks for the old name finds nothing, so every token that `generate` decodes seems to stand at position 0.
#
# What one expects: a minor release keeps the old name working for a while, with a warning. It does for callers:
# `layer(x, past_key_values=...)` still works and warns.
#
# What happens: the model itself now passes `cache=...` to its layers, and a hook sees the arguments as they are
# passed. `kwargs.get("past_key_values")` is None, which looks exactly like a model that runs without a cache. There
# is no warning, since nobody used the old name in a call.
#
# Seen on 2026-11-27 with torch 2.13.0, prompt of 5 tokens, 3 new tokens, hook on the first decoder layer:
#   transformers 5.23.0: starts [0, 5, 6]
#   transformers 5.24.0: starts [0, 0, 0], no warning; kwargs["cache"] gives [0, 5, 6]
#
# Why it matters for SAEs: an SAE that must leave the first token (BOS, an attention sink) alone, or that steers from
# a given position on, asks the cache where the present tokens start. With every decoded token taken for the first
# one, a splice that skips position 0 is switched off for the whole answer.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=warning
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$tmp/venv/bin/pip" install --quiet --no-deps --target "$tmp/next" transformers==5.24.0
cat >"$tmp/starts.py" <<'EOF'
import json
import warnings

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
model = LlamaForCausalLM(config).eval()
starts = {"past_key_values": [], "cache": []}


def hook(module, args, kwargs):
    for name, seen in starts.items():
        cache = kwargs.get(name)
        seen.append(0 if cache is None else int(cache.get_seq_length()))


model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.generate(torch.arange(1, 6)[None], max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
about = [str(w.message) for w in caught if "past_key_values" in str(w.message)]
print(json.dumps({"version": transformers.__version__, "starts": starts, "warnings": about}))
EOF
"$tmp/venv/bin/python" "$tmp/starts.py" >"$tmp/5.23.json"
PYTHONPATH="$tmp/next" "$tmp/venv/bin/python" "$tmp/starts.py" >"$tmp/5.24.json" 2> >(tee "$tmp/log" >&2)
if grep past_key_values "$tmp/log"; then
    echo "changed: 5.24.0 says something about past_key_values"
    exit 1
fi
cat "$tmp/5.23.json" "$tmp/5.24.json"
"$tmp/venv/bin/python" - "$tmp/5.23.json" "$tmp/5.24.json" <<'EOF'
import json
import sys

old, new = (json.load(open(path)) for path in sys.argv[1:])
if (old["version"], new["version"]) != ("5.23.0", "5.24.0"):
    sys.exit("changed: the two versions are not those that were meant to be compared")
if old["starts"]["past_key_values"] != [0, 5, 6]:
    sys.exit("changed: 5.23.0 does not hand past_key_values to its layers")
if new["starts"]["past_key_values"] != [0, 0, 0] or new["warnings"]:
    sys.exit("changed: 5.24.0 hands past_key_values to its layers, or warns")
if new["starts"]["cache"] != [0, 5, 6]:
    sys.exit("changed: 5.24.0 does not hand `cache` to its layers")
EOF
