#!/usr/bin/env bash
# The attention_mask that a hook on a Hugging Face decoder layer sees is None, a boolean mask in which True means
# "attend", or a float mask in which 0.0 means "attend", depending on the attention implementation, on the padding and
# on the step of `generate`. Read as a truth value, the same batch gives opposite answers.
#
# What one expects: the 2-D mask that was passed to the model, or at any rate one form of it that says where padding
# is.
#
# What happens: with "sdpa" (the default) the mask is 4-D boolean; an all-ones mask is dropped in the prefill and,
# with the default cache, at each later token, but with a static cache the later tokens do get a mask. With "eager"
# the mask is always there and additive: 0.0 where a token is seen, the smallest float where it is not.
#
# Seen on 2026-11-27 with torch 2.13.0 and transformers 5.23.0, prompt of 5 tokens, hook on the first layer, mask at
# the prefill and at the second token; "padded" has 2 pad tokens on the left:
#   sdpa,  no padding, dynamic cache:  None, None
#   sdpa,  no padding, static cache:   None, bool (1, 1, 1, 7)
#   sdpa,  padded, dynamic cache:      bool (1, 1, 5, 5), bool (1, 1, 1, 6); .bool() of the last row FFTTT
#   eager, no padding, dynamic cache:  float (1, 1, 5, 5), float (1, 1, 1, 6)
#   eager, padded, dynamic cache:      float (1, 1, 5, 5), float (1, 1, 1, 6); .bool() of the last row TTFFF
#
# Why it matters for SAEs: a splice must leave padding out (of its loss, of its statistics, of the spliced tokens) and
# the decoder layer's mask is where a hook can see padding. A hook written against sdpa keeps exactly the pad tokens
# under eager, which one switches to for attention patterns.
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

ones = torch.ones(1, 5, dtype=torch.long)
padded = torch.tensor([[0, 0, 1, 1, 1]])
ids = torch.arange(1, 6)[None]


def masks(implementation, mask, cache):
    """The masks that the first decoder layer gets while two tokens are generated."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attn_implementation=implementation,
    )
    model = LlamaForCausalLM(config).eval()
    seen = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation=cache,
        disable_compile=True,
    )
    return seen[:2]


def form(mask):
    return None if mask is None else (str(mask.dtype).removeprefix("torch."), tuple(mask.shape))


seen = {
    (implementation, name, cache): masks(implementation, mask, cache)
    for implementation, name, mask, cache in (
        ("sdpa", "no padding", ones, "dynamic"),
        ("sdpa", "no padding", ones, "static"),
        ("sdpa", "padded", padded, "dynamic"),
        ("eager", "no padding", ones, "dynamic"),
        ("eager", "padded", padded, "dynamic"),
    )
}
forms = {key: [form(mask) for mask in value] for key, value in seen.items()}
for key, value in forms.items():
    print(*key, value)
last = {name: seen[name, "padded", "dynamic"][0][0, 0, -1].bool().tolist() for name in ("sdpa", "eager")}
print("last row of the padded prompt's mask as truth values:", last)
if forms != {
    ("sdpa", "no padding", "dynamic"): [None, None],
    ("sdpa", "no padding", "static"): [None, ("bool", (1, 1, 1, 7))],
    ("sdpa", "padded", "dynamic"): [("bool", (1, 1, 5, 5)), ("bool", (1, 1, 1, 6))],
    ("eager", "no padding", "dynamic"): [("float32", (1, 1, 5, 5)), ("float32", (1, 1, 1, 6))],
    ("eager", "padded", "dynamic"): [("float32", (1, 1, 5, 5)), ("float32", (1, 1, 1, 6))],
}:
    sys.exit("changed: the forms of the mask are not those described")
if last != {"sdpa": [False, False, True, True, True], "eager": [True, True, False, False, False]}:
    sys.exit("changed: the truth values of the two masks are no longer opposite")
if set(seen["eager", "padded", "dynamic"][0].unique().tolist()) != {0.0, torch.finfo(torch.float32).min}:
    sys.exit("changed: eager's mask holds other values than 0.0 and the smallest float")
EOF
