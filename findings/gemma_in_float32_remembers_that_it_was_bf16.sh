#!/usr/bin/env bash
# Two Gemma models in float32 with equal state dicts give different activations: one was loaded in bfloat16 and cast.
#
# What one expects: of weights that bfloat16 holds exactly, `from_pretrained(dtype=bfloat16).float()` and
# `from_pretrained(dtype=float32)` are one model; every tensor of their state dicts is equal.
#
# What happens: Gemma multiplies embeddings by sqrt(d_model), which is a buffer, left out of the state dict, and is cast
# with the model. sqrt(1152) = 33.94 becomes 34 in bfloat16 and stays 34 when the model is cast up again.
#
# Seen on 2026-11-28 with transformers 5.23.0, torch 2.13.0, tiny Gemma 1, 2 and 3 models of d_model 1152:
#   the stream that enters layer 0 is 1.0017 times as large in the model that was bfloat16; saved and loaded again in
#   float32 it is the other model (the rounded factor over the exact one: 0.998 at d_model 640, 2560 and 3584, 1.0013 at
#   3072, 1.0024 at 5376, 1 at 2304)
#
# Why it matters for SAEs: a residual stream off by 0.2 % everywhere shifts what is near a threshold, so L0, FVU and
# logits of "the same" float32 model depend on how it got there: an evaluation that casts the bfloat16 model up for
# precision, and one that loads it in float32, disagree by more than float32 would explain.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$tmp/venv/bin/python" -W ignore - "$tmp" <<'EOF'
import sys

import torch
import transformers as tf

torch.manual_seed(0)
shape = {"vocab_size": 64, "hidden_size": 1152, "intermediate_size": 16, "num_hidden_layers": 1}
shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
ids = torch.arange(3, 13)[None]


def stream(model):
    with torch.no_grad():
        return model.eval()(ids, output_hidden_states=True).hidden_states[0]


for family, config in (("Gemma", "GemmaConfig"), ("Gemma2", "Gemma2Config"), ("Gemma3", "Gemma3TextConfig")):
    kind = getattr(tf, f"{family}ForCausalLM")
    where = f"{sys.argv[1]}/{family}"
    kind(getattr(tf, config)(**shape)).bfloat16().save_pretrained(where)
    direct = kind.from_pretrained(where, dtype=torch.float32)
    cast = kind.from_pretrained(where, dtype=torch.bfloat16).float()
    ours, theirs = direct.state_dict(), cast.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        sys.exit("the weights differ: this is not the comparison that was meant")
    ratio = (stream(cast).norm() / stream(direct).norm()).item()
    cast.save_pretrained(f"{where}-again")
    again = kind.from_pretrained(f"{where}-again", dtype=torch.float32)
    back = (stream(again).norm() / stream(direct).norm()).item()
    print(f"{family}: equal state dicts; the stream into layer 0 is {ratio:.5f} times as large, saved and loaded {back:.5f}")
    if abs(ratio - 34 / 1152**0.5) > 1e-5:
        sys.exit("changed: the factor of embeddings no longer stays what bfloat16 made of it")
    if abs(back - 1) > 1e-6:
        sys.exit("changed: a model that was saved after the cast no longer has the exact factor when it is loaded")
EOF
