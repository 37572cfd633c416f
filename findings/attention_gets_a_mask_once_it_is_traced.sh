#!/usr/bin/env bash
# transformers gives attention an explicit mask while it is traced or recorded, where the same call run eagerly has none: a
# compiled or CUDA-graphed forward pass without a cache takes other attention kernels than the one it was timed against.
#
# What one expects: a forward pass of rows without padding, without an attention mask and without a cache is causal; whether it is
# run eagerly, compiled or recorded, scaled_dot_product_attention is called with is_causal=True and no mask.
#
# What happens: the model makes position ids itself and then asks of them whether several texts stand in one row ("packed"). Eagerly it
# looks: a read of the device, which makes the host wait in every forward pass on a GPU. While it is traced it cannot look,
# takes for granted that they do, and forms a [batch, 1, tokens, tokens] mask. With use_cache=True (an empty cache is
# made) the question is not asked, and there is no mask in either case.
#
# Seen on 2026-11-27 with transformers 5.23.0, torch 2.13.0, a tiny Llama, sdpa, 2 rows of 9 tokens:
#   eager, use_cache=False: no mask, is_causal; 1 value read back by the host
#   traced (torch.compile, backend "eager"), use_cache=False: a mask, not is_causal
#   traced, use_cache=True: no mask, is_causal
#
# Why it matters here: passes over packed rows for SAEs are made without a cache, and are what one records or compiles.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$tmp/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaModel


class Reads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
model = LlamaModel(config).eval()
ids = torch.arange(18).view(2, 9)
found = []


def backend(graph, inputs):
    """Notes how attention is called in what was traced, and runs it as it is."""
    for node in graph.graph.nodes:
        if "scaled_dot_product_attention" in str(node.target):
            found.append((node.kwargs.get("attn_mask") is not None, node.kwargs.get("is_causal")))
    return graph.forward


real = torch.nn.functional.scaled_dot_product_attention


def noted(*args, attn_mask=None, is_causal=False, **kwargs):
    found.append((attn_mask is not None, is_causal))
    return real(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)


def calls(run, **options):
    found.clear()
    with torch.no_grad():
        run(ids, **options)
    return sorted(set(found))


torch.nn.functional.scaled_dot_product_attention = noted
eager = calls(model, use_cache=False)
with torch.no_grad(), Reads() as reads:
    model(ids, use_cache=False)
torch.nn.functional.scaled_dot_product_attention = real
traced = calls(torch.compile(model, backend=backend), use_cache=False)
torch._dynamo.reset()
cached = calls(torch.compile(model, backend=backend), use_cache=True)
print("(mask given, is_causal): eager", eager, "traced", traced, "traced with a cache", cached)
print("values read back by the host in an eager pass:", reads.n)
if eager != [(False, True)] or reads.n != 1:
    sys.exit("changed: the eager pass")
if traced != [(True, False)]:
    sys.exit("changed: the traced pass no longer has a mask where the eager one has none")
if cached != [(False, True)]:
    sys.exit("changed: the traced pass with a cache")
PY
