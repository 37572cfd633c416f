#!/usr/bin/env bash
# A forward hook added to a decoder layer after a compiled call is skipped, without a word, by every later call that
# fits the code compiled before. A call of a new shape is compiled anew and does run the hook.
#
# What one expects: hooks belong to the module, so `layer.register_forward_hook` works on a compiled model as it does
# on an eager one; if compiled code cannot honour a new hook, the model is compiled again.
#
# What happens: by default (`torch._dynamo.config.skip_nnmodule_hook_guards` is True) code compiled for a layer
# without hooks stays in use when the layer gets one. With that option False, the hook is honoured. The comment at the
# option says that a removed hook goes unnoticed too, but here it does not: it is no longer run.
#
# Seen on 2026-11-27 with torch 2.13.0 and transformers 5.23.0 (backend "eager": this is the tracer, not a backend):
#   hook added after a compiled call:  0 runs on the same shape, logits unchanged; 1 run on a shorter prompt
#   the same with the option False:    1 run on the same shape, logits changed
#   hook added before the first call:  1 run, logits changed
#   that hook removed afterwards:      0 runs, logits are the model's own again
#
# Why it matters for SAEs: splicing an SAE into a model that has been warmed up (a baseline perplexity, say) measures
# the model without the SAE: "no loss from the splice". If some lengths of prompt are new, those have it.
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
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
model = LlamaForCausalLM(config).eval()
layer = model.model.layers[0]
long, short = torch.arange(8)[None], torch.arange(5)[None]
runs = 0


def zero(module, args, output):
    global runs
    runs += 1
    return torch.zeros_like(output)


def call(compiled, ids):
    """Largest change of the logits against the eager model without hooks, and how often the hook ran."""
    global runs
    runs = 0
    with torch.no_grad():
        got = compiled(ids, use_cache=False).logits
    return (got - plain[ids.shape[1]]).abs().max().item(), runs


with torch.no_grad():
    plain = {ids.shape[1]: model(ids, use_cache=False).logits for ids in (long, short)}

compiled = torch.compile(model, backend="eager")
call(compiled, long)
handle = layer.register_forward_hook(zero)
same_shape = call(compiled, long)
new_shape = call(compiled, short)
handle.remove()

torch._dynamo.reset()
with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
    compiled = torch.compile(model, backend="eager")
    call(compiled, long)
    handle = layer.register_forward_hook(zero)
    guarded = call(compiled, long)
handle.remove()

torch._dynamo.reset()
compiled = torch.compile(model, backend="eager")
handle = layer.register_forward_hook(zero)
before = call(compiled, long)
handle.remove()
removed = call(compiled, long)

print("added after the first call, same shape (change of logits, runs):", same_shape)
print("added after the first call, new shape:", new_shape)
print("added after the first call, same shape, hooks guarded:", guarded)
print("added before the first call:", before)
print("removed after the first call:", removed)
if not (before[1] == 1 and before[0] > 0.01 and removed == (0.0, 0)):
    sys.exit("changed: hooks that are there before the first compiled call no longer behave as described")
if same_shape != (0.0, 0):
    sys.exit("changed: a hook added after the first compiled call is now run")
if not (new_shape[1] == 1 and new_shape[0] > 0.01):
    sys.exit("changed: a new shape no longer picks the later hook up")
if not (guarded[1] == 1 and guarded[0] > 0.01):
    sys.exit("changed: guarding hooks no longer makes the later hook run")
EOF
