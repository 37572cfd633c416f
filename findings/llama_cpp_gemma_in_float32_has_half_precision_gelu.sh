#!/usr/bin/env bash
# llama.cpp computes Gemma's activation function in half precision, also where weights, cache and products are float32.
#
# What one expects: a model written to GGUF in float32, with a float32 KV cache, on a CPU, gives transformers' float32
# logits up to rounding, 1e-6 or so. A Llama does.
#
# What happens: GELU is looked up in a table indexed by the input's 16 bits, and the table holds 16 bits. On the same
# tiny shape Gemma 2's log-probabilities are off by a thousand times as much as a Llama's. Rounding the input and
# the output of GELU to float16 in transformers gives llama.cpp's numbers again.
#
# Seen on 2026-11-28 with xllamacpp 2026.10.11549, gguf 0.19.0, torch 2.13.0, transformers 5.23.0, on x86-64:
#   largest difference of log-probabilities: Llama 4.4e-07, Gemma 2 7.5e-04, and with GELU rounded to float16 in transformers 1.9e-05
#
# Why it matters for SAEs: whoever compares an adapted or spliced Gemma in transformers with its GGUF cannot ask for
# float32 agreement; a check that is strict enough for a Llama fails for a right Gemma, and one that passes Gemma
# would pass a wrong scale of a small adapter in a Llama.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 xllamacpp==2026.10.11549
"$tmp/venv/bin/python" -W ignore - "$tmp" <<'EOF'
import sys

import numpy as np
import torch
import xllamacpp
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from torch.nn.functional import gelu
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

PROMPT, VOCAB, HEADS, WIDTH = [1, 17, 5, 200, 33, 90, 7], 260, 2, 32
SHAPE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=HEADS,
             num_key_value_heads=HEADS, head_dim=WIDTH, max_position_embeddings=128, tie_word_embeddings=True)


def made(kind):
    torch.manual_seed(0)
    if kind == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, query_pre_attn_scalar=WIDTH, sliding_window=64))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn_like(p))
    model.config._attn_implementation = "eager"
    return model.eval()


def write(model, kind, path):
    """Float32, as llama.cpp's own converter arranges the tensors."""
    c, w = model.config, GGUFWriter(path, kind)
    w.add_block_count(c.num_hidden_layers), w.add_context_length(128), w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size), w.add_head_count(HEADS), w.add_head_count_kv(HEADS)
    w.add_key_length(WIDTH), w.add_value_length(WIDTH), w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_dimension_count(WIDTH), w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if kind == "gemma2":
        w.add_sliding_window(64), w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("default"), w.add_token_list([f"<{i}>" for i in range(VOCAB)])
    w.add_token_types([1] * VOCAB), w.add_token_merges(["< 0"]), w.add_bos_token_id(0), w.add_eos_token_id(0)
    names = get_tensor_name_map(next(a for a, n in MODEL_ARCH_NAMES.items() if n == kind), c.num_hidden_layers)
    for key, t in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        if kind == "llama" and (".q_proj." in key or ".k_proj." in key):
            t = t.reshape(HEADS, 2, WIDTH // 2, -1).swapaxes(1, 2).reshape(t.shape)
        t = t + 1 if kind == "gemma2" and "norm" in key else t
        w.add_tensor(names.get_name(key, try_suffixes=(".weight",)), np.ascontiguousarray(t.numpy()))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def theirs(path):
    p, f32 = xllamacpp.CommonParams(), xllamacpp.ggml_type.GGML_TYPE_F32
    p.model.path, p.n_gpu_layers, p.n_parallel, p.warmup, p.fit_params = path, 0, 1, False, False
    p.n_ctx, p.cache_type_k, p.cache_type_v, p.cache_prompt, p.verbosity = len(PROMPT) + 1, f32, f32, False, 1
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(p).handle_completions({"prompt": PROMPT, "max_tokens": 1, "logprobs": VOCAB})
    found = torch.full((VOCAB,), float("nan"), dtype=torch.float64)
    for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[each["id"]] = each["logprob"]
    return found


@torch.no_grad()
def ours(model):
    return model(torch.tensor([PROMPT])).logits[0, -1].double().log_softmax(-1)


def halved(x):
    return gelu(x.half().float(), approximate="tanh").half().float()


off = {}
for kind in ("llama", "gemma2"):
    model = made(kind)
    write(model, kind, path := f"{sys.argv[1]}/{kind}.gguf")
    found = theirs(path)
    off[kind] = float((found - ours(model)).abs().max())
    if kind == "gemma2":
        for layer in model.model.layers:
            layer.mlp.act_fn.forward = halved
        off["gemma2, GELU rounded to float16 in transformers"] = float((found - ours(model)).abs().max())
for name, value in off.items():
    print(f"largest difference of log-probabilities, {name}: {value:.1e}")
assert off["llama"] < 1e-5
assert off["gemma2"] > 30 * off["llama"]
assert off["gemma2, GELU rounded to float16 in transformers"] < off["gemma2"] / 10
EOF
