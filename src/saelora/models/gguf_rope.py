"""Rotary positions as a GGUF file states them, in keys and in factors that are stored as tensors."""

import math

import numpy as np

from saelora.limits import Within
from saelora.models.gguf_file import GGUFFile
from saelora.models.gguf_keys import Keys, refused
from saelora.models.gguf_tensors import FACTORS
from saelora.records import JsonObject

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_ABOVE_ZERO = Within(above=0)


def rope_parameters(keys: Keys, architecture: str) -> JsonObject:
    """rope_parameters, from keys and from factors that are stored as tensors."""
    if architecture == "gpt2":
        return {}
    theta = keys.number("rope.freq_base", 10000.0, _ABOVE_ZERO)
    rotated = keys.whole("rope.dimension_count", keys.head_dim, least=2, most=keys.head_dim)
    if rotated % 2:
        raise keys.wrong("rope.dimension_count", rotated, "an even number")
    scaling, factors = _scaling(keys), _stored_factors(keys.file, theta, rotated)
    if factors and scaling["rope_type"] != "default":
        raise keys.unread("rope.scaling.type", scaling["rope_type"] + " beside stored factors")
    rope = {"rope_theta": theta, **scaling, **factors}
    if architecture == "phi3":
        rope["partial_rotary_factor"] = rotated / keys.head_dim
    elif rotated != keys.head_dim:
        raise keys.unread("rope.dimension_count", rotated)
    local = keys.number("rope.freq_base_swa", 10000.0 if architecture == "gemma3" else theta, _ABOVE_ZERO)
    if architecture == "gemma3":
        near = {"rope_type": "default", "rope_theta": local}
        return {"rope_parameters": {"sliding_attention": near, "full_attention": rope}}
    if local != theta:
        raise keys.unread("rope.freq_base_swa", local)
    return {"rope_parameters": rope}


def _scaling(keys: Keys) -> JsonObject:
    """How rotary frequencies are scaled: not at all, linear, or yarn."""
    kind = keys.take("rope.scaling.type", "none")
    old = keys.number("rope.scale_linear", 1.0, _ABOVE_ZERO)  # as files said it before there were kinds
    factor = keys.number("rope.scaling.factor", old) or 1.0
    original = keys.whole("rope.scaling.original_context_length", None)
    keys.expect("rope.scaling.attn_factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {"rope_type": "linear", "factor": old} if old != 1.0 else {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind != "yarn" or original is None:
        raise keys.unread("rope.scaling.type", kind)
    for name in ("yarn_ext_factor", "yarn_attn_factor"):
        keys.expect(f"rope.scaling.{name}", 1.0)
    yarn = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if (value := keys.number(f"rope.scaling.yarn_{name}", None)) is not None:
            yarn[name] = value
    return yarn


def _stored_factors(file: GGUFFile, theta: float, rotated: int) -> JsonObject:
    """Llama 3's scaling, where the file holds exactly its factors, which frequencies are divided by."""
    for name in FACTORS:
        if name not in file.tensors or np.all((stored := file.values(name)) == 1.0):
            continue
        factor = round(float(stored.max()), 4)
        if name == "rope_freqs.weight" and stored.shape == (rotated // 2,):
            meant = llama3_factors(theta, rotated, factor)
            if np.allclose(stored, meant, rtol=1e-4):
                return {"rope_type": "llama3", "factor": factor, **LLAMA3}
        raise refused(file, f"stores rotary factors ({name}) that are not Llama 3's, which are not read here")
    return {}


def llama3_factors(theta: float, rotated: int, factor: float) -> np.ndarray:
    """What frequencies are divided by, [rotated / 2], as in llama.cpp's convert_hf_to_gguf.py and transformers'."""
    inverse = theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = LLAMA3["original_max_position_embeddings"] * inverse / (2 * math.pi)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
