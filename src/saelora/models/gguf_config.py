"""The configuration that a GGUF file states, key by key: what is not understood is refused, never passed over.

transformers reads some keys of each architecture, leaves others at its own defaults, and drops tensors that it has no
name for. Here every key of the architecture, and every tensor, is either used, known to be neutral, or an error.
llama.cpp's source is what the keys mean.
"""

import logging
import math
import re
from typing import Any

import numpy as np

from saelora.errors import InputError
from saelora.limits import NOT_NEGATIVE, Within
from saelora.models.gguf_file import GGUFFile

logger = logging.getLogger(__name__)

_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_PHI3 = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
_GPT2 = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
_SANDWICH = (*_LAYER, "post_attention_norm", "post_ffw_norm")
_QK_NORM = ("attn_q_norm", "attn_k_norm")
_WEIGHTS = {  # of a layer, all needed
    "llama": _LAYER,
    "qwen2": _LAYER,
    "qwen3": (*_LAYER, *_QK_NORM),
    "phi3": _PHI3,
    "gemma2": _SANDWICH,
    "gemma3": (*_SANDWICH, *_QK_NORM),
    "gpt2": _GPT2,
}
_BIASES = {"qwen2": ("attn_q", "attn_k", "attn_v"), "gpt2": _GPT2}  # of a layer, all needed
_ATTENTION_BIAS = ("attn_q", "attn_k", "attn_v", "attn_output")  # all or none; a setting of llama and qwen3
_MLP_BIAS = ("ffn_gate", "ffn_up", "ffn_down")  # all or none; a setting of llama
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_TOP = ("token_embd.weight", "output_norm.weight", "output.weight")
_NEUTRAL = ("tensor_data_layout", "rope.scaling.finetuned")
_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale attention by d_model / heads
_SHARED_WIDTH = ("qwen2", "phi3", "gpt2")  # d_model = heads x head_dim, in transformers' models
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LARGEST = 2**30  # a size; beyond any model
_NEEDED: Any = object()
_ABOVE_ZERO = Within(above=0)
_GPT2_SPLITS = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "smollm")  # split as GPT-2's, or merged as if they were


def stated_config(file: GGUFFile) -> dict[str, Any]:
    """Settings of the transformers configuration that the file states, whatever transformers makes of it.

    Raises:
        InputError: an architecture, a key or a tensor that is not understood, or one that is missing.
    """
    architecture = file.architecture
    if architecture not in _WEIGHTS or file.metadata.get("general.type", "model") != "model":
        kind = architecture if file.metadata.get("general.type", "model") == "model" else file.metadata["general.type"]
        raise _refused(file, f"is {kind or 'of no stated architecture'}, read are models of {', '.join(_WEIGHTS)}")
    keys = _Keys(file)
    config = _sizes(keys, architecture) | _attention(keys, architecture) | _rope(keys, architecture)
    config |= _tensors(file, architecture, config["num_hidden_layers"])
    _check_shapes(file, keys.head_dim, config)
    if (n_words := keys.whole("vocab_size", 0, least=0)) > config["vocab_size"]:
        raise keys.wrong("vocab_size", n_words, f"at most {config['vocab_size']:,}, the rows of token_embd.weight")
    for role, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        config[f"{role}_token_id"] = _token_id(file, f"tokenizer.ggml.{key}_token_id", config["vocab_size"])
    keys.check_rest()
    _warn_of_tokenizer(file)
    return config


class _Keys:
    """The architecture's own keys; each is taken once, and what nobody took is an error."""

    def __init__(self, file: GGUFFile):
        self.file = file
        start = file.architecture + "."
        self._left = {k.removeprefix(start): v for k, v in file.metadata.items() if k.startswith(start)}

    def stated(self, key: str) -> Any:
        """A value that may be taken elsewhere; one number where it is the same in each layer."""
        value = self.file.metadata.get(f"{self.file.architecture}.{key}")
        if isinstance(value, list) and value:
            if any(item != value[0] for item in value):
                raise _refused(self.file, f"states another {key} for each layer, which is not read here")
            value = value[0]
        return value

    @property
    def head_dim(self) -> int:
        """Of queries and keys; llama.cpp shares d_model between the heads where nothing is stated.

        For who has taken the sizes and the number of heads, which are checked then.
        """
        if self.stated("attention.key_length"):
            return self._whole("attention.key_length", 1, _LARGEST)
        d_model, n_heads = self.stated("embedding_length"), self.stated("attention.head_count")
        if d_model % n_heads:
            raise self.wrong("attention.head_count", n_heads, f"a divisor of its embedding_length, {d_model}")
        return int(d_model // n_heads)

    def take_all(self, key: str) -> Any:
        """The value, layer by layer if that is how it is stated."""
        return self._left.pop(key, None)

    def take(self, key: str, default: Any = None) -> Any:
        value = self.stated(key)
        return default if self._left.pop(key, None) is None else value

    def whole(self, key: str, default: Any = _NEEDED, *, least: int = 1, most: int = _LARGEST) -> Any:
        """A whole number within bounds; the default where it is not stated."""
        return default if self._absent(key, default) else self._whole(key, least, most)

    def number(self, key: str, default: Any = _NEEDED, limit: Within = NOT_NEGATIVE) -> Any:
        """A finite number within its limit; the default where it is not stated."""
        if self._absent(key, default):
            return default
        value = self.stated(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or limit(value):
            raise self.wrong(key, value, f"a number that is {limit.expected().removeprefix('a number ')}")
        return float(value)

    def _absent(self, key: str, default: Any) -> bool:
        absent = self.take(key) is None
        if absent and default is _NEEDED:
            raise _refused(self.file, f"does not state {self.file.architecture}.{key}")
        return absent

    def _whole(self, key: str, least: int, most: int) -> int:
        value = self.stated(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, value, f"a whole number from {least:,} to {most:,}")
        return value

    def expect(self, key: str, neutral: Any) -> None:
        """Refuse a setting that transformers' model does not have, unless it says what is done without it."""
        value = self.take(key, neutral)
        near = isinstance(neutral, float) and isinstance(value, int | float)
        if value != neutral and not (near and math.isclose(value, neutral, rel_tol=1e-5)):
            raise self.unread(key, value)

    def check_rest(self) -> None:
        """Refuse keys that nobody took; zero, false and nothing switch off whatever it is."""
        for key, value in self._left.items():
            if key not in _NEUTRAL and value not in (0, False, "", []):
                raise self.unread(key, value)

    def unread(self, key: str, value: Any) -> InputError:
        return _refused(self.file, f"states {self.file.architecture}.{key} = {_short(value)}, which is not read here")

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        return _refused(
            self.file, f"states {self.file.architecture}.{key} = {_short(repr(value))}, expected {expected}"
        )


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 40 else text[:40] + "..."


def _refused(file: GGUFFile, why: str) -> InputError:
    return InputError(f"{file.paths[0]} {why}: give the model's Hugging Face folder instead")


def _sizes(keys: _Keys, architecture: str) -> dict[str, Any]:
    gpt2 = architecture == "gpt2"
    eps = ("layer_norm_epsilon", "layer_norm_epsilon") if gpt2 else ("layer_norm_rms_epsilon", "rms_norm_eps")
    config = {
        "num_hidden_layers": keys.whole("block_count", most=max(1, len(keys.file.tensors))),
        "hidden_size": keys.whole("embedding_length"),
        "n_inner" if gpt2 else "intermediate_size": keys.whole("feed_forward_length"),
        eps[1]: keys.number(f"attention.{eps[0]}"),
    }
    if (length := keys.whole("context_length", None)) is not None:
        config["max_position_embeddings"] = length
    return config


def _attention(keys: _Keys, architecture: str) -> dict[str, Any]:
    n_heads, d_model = keys.whole("attention.head_count"), keys.stated("embedding_length")
    n_kv = keys.whole("attention.head_count_kv", n_heads)
    if n_heads % n_kv:
        raise keys.wrong("attention.head_count_kv", n_kv, f"a divisor of its head_count, {n_heads}")
    head_dim = keys.head_dim
    for scale in ("logit_scale", "residual_scale", "embedding_scale"):
        keys.expect(scale, 1.0)
    keys.expect("attention.causal", True)
    keys.expect("attention.value_length", head_dim)
    large = keys.stated("block_count") == _LARGE_GEMMA.get(architecture)
    scalar = d_model // n_heads if large else head_dim
    keys.expect("attention.scale", scalar**-0.5)
    config: dict[str, Any] = {"num_attention_heads": n_heads, "num_key_value_heads": n_kv}
    if architecture in _SHARED_WIDTH:
        keys.expect("attention.key_length", d_model // n_heads)
    else:
        keys.take("attention.key_length")
        config["head_dim"] = head_dim
    if architecture == "gpt2":
        if n_kv != n_heads:
            raise keys.unread("attention.head_count_kv", n_kv)
        return {"num_attention_heads": n_heads}
    if architecture in _LARGE_GEMMA:
        config |= {"query_pre_attn_scalar": scalar, "sliding_window": keys.whole("attention.sliding_window")}
        for softcap in ("attn_logit_softcapping", "final_logit_softcapping"):
            config[softcap] = keys.number(softcap, None) or None
        _check_pattern(keys, 6 if architecture == "gemma3" else 2)
        return config
    window = keys.whole("attention.sliding_window", None, least=0) or None
    if architecture == "phi3":
        return config | {"sliding_window": window}
    if window is not None and window < (keys.stated("context_length") or math.inf):
        raise keys.unread("attention.sliding_window", window)
    return config | {"sliding_window": None}  # transformers takes a llama of some names for a mistral, which has one


def _check_pattern(keys: _Keys, every: int) -> None:
    """Every n-th layer sees all positions, the others a window: as a number, or layer by layer."""
    told = keys.take_all("attention.sliding_window_pattern")
    layers = [(i + 1) % every != 0 for i in range(keys.stated("block_count"))]
    if told not in (None, every, layers):
        raise keys.unread("attention.sliding_window_pattern", told)


def _rope(keys: _Keys, architecture: str) -> dict[str, Any]:
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


def _scaling(keys: _Keys) -> dict[str, Any]:
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


def _stored_factors(file: GGUFFile, theta: float, rotated: int) -> dict[str, Any]:
    """Llama 3's scaling, where the file holds exactly its factors, which frequencies are divided by."""
    for name in FACTORS:
        if name not in file.tensors or np.all((stored := file.values(name)) == 1.0):
            continue
        factor = round(float(stored.max()), 4)
        if name == "rope_freqs.weight" and stored.shape == (rotated // 2,):
            meant = _llama3_factors(theta, rotated, factor)
            if np.allclose(stored, meant, rtol=1e-4):
                return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
        raise _refused(file, f"stores rotary factors ({name}) that are not Llama 3's, which are not read here")
    return {}


def _llama3_factors(theta: float, rotated: int, factor: float) -> np.ndarray:
    """[rotated / 2], as in llama.cpp's convert_hf_to_gguf.py and transformers' _compute_llama3_parameters."""
    inverse = theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = _LLAMA3["original_max_position_embeddings"] * inverse / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _tensors(file: GGUFFile, architecture: str, n_layers: int) -> dict[str, Any]:
    """What the tensors say of the configuration; each must be one that the model has, and none may lack."""
    there = set(file.tensors)
    biases = set(_BIASES.get(architecture, ()))
    config: dict[str, Any] = {}
    if architecture in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in there
        biases |= set(_ATTENTION_BIAS) if config["attention_bias"] else set()
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in there
        biases |= set(_MLP_BIAS) if config["mlp_bias"] else set()
    names = [f"{name}.weight" for name in _WEIGHTS[architecture]] + [f"{name}.bias" for name in biases]
    wanted = {f"blk.{i}.{name}" for i in range(n_layers) for name in names} | set(_TOP[:2])
    wanted |= {"position_embd.weight", "output_norm.bias"} if architecture == "gpt2" else set()
    config["tie_word_embeddings"] = "output.weight" not in there
    if missing := sorted(wanted - there, key=_by_number):
        raise _refused(file, f"lacks {len(missing)} tensors ({missing[0]}, ...)")
    if left := sorted(there - wanted - set(_TOP) - set(FACTORS), key=_by_number):
        raise _refused(file, f"holds {len(left)} tensors that {architecture} models here lack ({left[0]}, ...)")
    shape = file.tensors["token_embd.weight"].shape
    config["vocab_size"] = int(shape[-1]) if len(shape) else 0
    return config


def _token_id(file: GGUFFile, key: str, n_embedded: int) -> int | None:
    """A special token's id, if there is one."""
    value = file.metadata.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_embedded):
        return value
    raise _refused(file, f"states {key} = {_short(repr(value))}, expected a whole number from 0 to {n_embedded - 1:,}")


def _check_shapes(file: GGUFFile, head_dim: int, config: dict[str, Any]) -> None:
    """Raise InputError where a tensor's shape [in, out], as GGUF has it, is not what the stated sizes make it."""
    d_model, vocab = config["hidden_size"], config["vocab_size"]
    n_heads = config["num_attention_heads"]
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
            raise _refused(file, f"holds {name} of shape {list(there)}, but the sizes it states make it {list(meant)}")


def _by_number(name: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _warn_of_tokenizer(file: GGUFFile) -> None:
    """Say where transformers splits text as GPT-2's tokenizer does for want of the file's own way."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # other versions choose by architecture
        return
    split = str(file.metadata.get("tokenizer.ggml.pre"))
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and split not in {*_GPT2_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS}:
        logger.warning(
            "%s: its way to split text (%s) is not known, GPT-2's is taken: tokens may differ from those that the "
            "model was trained on; its Hugging Face folder has them exactly",
            file.paths[0].name,
            split,
        )
