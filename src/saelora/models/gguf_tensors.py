"""The tensors that each architecture of a GGUF file has, by name and shape: no other, and none may lack."""

import re
from typing import Any

from saelora.models.gguf_file import GGUFFile
from saelora.models.gguf_keys import refused
from saelora.records import JsonObject

_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_FUSED = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
_SANDWICH = (*_LAYER, "post_attention_norm", "post_ffw_norm")
_QK_NORM = ("attn_q_norm", "attn_k_norm")
WEIGHTS = {  # of a layer, all needed
    "llama": _LAYER,
    "qwen2": _LAYER,
    "qwen3": (*_LAYER, *_QK_NORM),
    "phi3": _FUSED,
    "gemma2": _SANDWICH,
    "gemma3": (*_SANDWICH, *_QK_NORM),
    "gpt2": _FUSED,
}
_BIASES = {"qwen2": ("attn_q", "attn_k", "attn_v"), "gpt2": _FUSED}  # of a layer, all needed
_ATTENTION_BIAS = ("attn_q", "attn_k", "attn_v", "attn_output")  # all or none; a setting of llama and qwen3
_MLP_BIAS = ("ffn_gate", "ffn_up", "ffn_down")  # all or none; a setting of llama
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_TOP = ("token_embd.weight", "output_norm.weight", "output.weight")


def tensors(file: GGUFFile, architecture: str, n_layers: int) -> JsonObject:
    """What the tensors say of the configuration; each must be one that the model has, and none may lack."""
    there = set(file.tensors)
    biases = set(_BIASES.get(architecture, ()))
    config: JsonObject = {}
    if architecture in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in there
        biases |= set(_ATTENTION_BIAS) if config["attention_bias"] else set()
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in there
        biases |= set(_MLP_BIAS) if config["mlp_bias"] else set()
    names = [f"{name}.weight" for name in WEIGHTS[architecture]] + [f"{name}.bias" for name in biases]
    wanted = {f"blk.{i}.{name}" for i in range(n_layers) for name in names} | set(_TOP[:2])
    wanted |= {"position_embd.weight", "output_norm.bias"} if architecture == "gpt2" else set()
    config["tie_word_embeddings"] = "output.weight" not in there
    if missing := sorted(wanted - there, key=_by_number):
        raise refused(file, f"lacks {len(missing)} tensors ({missing[0]}, ...)")
    if left := sorted(there - wanted - set(_TOP) - set(FACTORS), key=_by_number):
        raise refused(file, f"holds {len(left)} tensors that {architecture} models here lack ({left[0]}, ...)")
    shape = file.tensors["token_embd.weight"].shape
    config["vocab_size"] = int(shape[-1]) if len(shape) else 0
    return config


def check_shapes(file: GGUFFile, head_dim: int, config: JsonObject) -> None:
    """Raise InputError where a tensor's shape [in, out], as GGUF has it, is not what the stated sizes make it."""
    d_model, vocab = config["hidden_size"], config["vocab_size"]
    n_heads: int = config["num_attention_heads"]
    width, kv = n_heads * head_dim, config.get("num_key_value_heads", n_heads) * head_dim
    inner = config.get("intermediate_size") or config["n_inner"]
    shapes = {
        **dict.fromkeys(("token_embd", "output"), (d_model, vocab)),
        **dict.fromkeys(("output_norm", "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"), (d_model,)),
        **dict.fromkeys(_QK_NORM, (head_dim,)),
        "position_embd": (d_model, config.get("max_position_embeddings", 0)),
        "attn_q": (d_model, width),
        **dict.fromkeys(("attn_k", "attn_v"), (d_model, kv)),
        "attn_qkv": (d_model, width + 2 * kv),
        "attn_output": (width, d_model),
        "ffn_gate": (d_model, inner),
        "ffn_up": (d_model, 2 * inner if file.architecture == "phi3" else inner),
        "ffn_down": (inner, d_model),
    }
    for name, tensor in file.tensors.items():
        if name in FACTORS:
            continue
        stem, kind = name.split(".")[-2:]
        meant, there = shapes[stem] if kind == "weight" else shapes[stem][-1:], tuple(map(int, tensor.shape))
        if there != meant:
            raise refused(file, f"holds {name} of shape {list(there)}, but the sizes it states make it {list(meant)}")


def _by_number(name: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
