"""A model in float32 as llama.cpp reads it, to run an adapter on: what its convert_hf_to_gguf.py writes.

Its vocabulary is made up, since it is only ever given token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.models.gguf_rope import LLAMA3, llama3_factors

_SOFTCAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}


def paired(tensor: Tensor, n_heads: int) -> Tensor:
    """Rows of a query's or key's weights [n_heads * d_head, ...] as llama models have them: they rotate neighbours."""
    return tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def n_paired(config: Any, architecture: str, name: str) -> int | None:
    """The heads of what a tensor's name says is a query or a key, where llama.cpp has its rows in pairs; else None."""
    if architecture != "llama":
        return None
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else None


def write_base(model: Any, architecture: str, path: Path) -> None:
    """Write a transformers model that is on the CPU and has no adapter.

    Raises:
        InputError: it has something that is not written here.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map

    config = model.config.get_text_config()
    _check_rope(config, architecture)
    writer = GGUFWriter(path, architecture)
    for key, value in _settings(config, architecture).items():
        adds: dict[type, Callable[..., None]] = {int: writer.add_uint32, float: writer.add_float32}
        adds[type(value)](f"{architecture}.{key}", value)
    _vocabulary(writer, int(model.get_input_embeddings().weight.shape[0]))
    arch = next(each for each, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, int(config.num_hidden_layers))
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"llama.cpp's {architecture} models have no place for {key}")
        writer.add_tensor(name, _as_written(key, tensor, config, architecture))
    rope = _ropes(config)[0]
    if rope.get("rope_type") == "llama3":
        factors = llama3_factors(rope["rope_theta"], _head_dim(config), rope["factor"])
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_rope(config: Any, architecture: str) -> None:
    rope, *others = _ropes(config)
    kind = rope.get("rope_type", "default")
    llama3 = architecture == "llama" and all(rope.get(key) == value for key, value in LLAMA3.items())
    plain = all(each.get("rope_type", "default") == "default" for each in others)
    if not plain or (kind != "default" and not (kind == "llama3" and llama3)):
        raise InputError(f"rotary scaling of the kind {kind} is not written for llama.cpp here")


def _as_written(key: str, tensor: Tensor, config: Any, architecture: str) -> np.ndarray:
    tensor = tensor.to(torch.float32)
    n_heads = n_paired(config, architecture, key)
    if n_heads is not None:
        tensor = paired(tensor, n_heads)
    if architecture.startswith("gemma") and "norm" in key:
        tensor = tensor + 1  # transformers adds it in the pass
    return np.ascontiguousarray(tensor.numpy())


def _settings(config: Any, architecture: str) -> dict[str, Any]:
    """The architecture's keys."""
    head_dim = _head_dim(config)
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(_ropes(config)[0]["rope_theta"]),
    }
    if architecture.startswith("gemma"):
        found["attention.sliding_window"] = config.sliding_window
        softcaps = {key: getattr(config, name, None) for key, name in _SOFTCAPS.items()}
        found |= {key: float(value) for key, value in softcaps.items() if value}
    return found


def _vocabulary(writer: Any, n_tokens: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{i}>" for i in range(n_tokens)])
    writer.add_token_types([1] * n_tokens)
    writer.add_token_merges(["< 0"])  # without any, llama.cpp refuses the file
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters: of layers that see all positions first, then of the others, where these differ."""
    found = config.rope_parameters
    return [found["full_attention"], found["sliding_attention"]] if "full_attention" in found else [found]
