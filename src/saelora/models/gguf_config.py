"""The configuration that a GGUF file states, key by key: what is not understood is refused, never passed over.

transformers reads some keys of each architecture, leaves others at its own defaults, and drops tensors that it has no
name for. Here every key of the architecture, and every tensor, is either used, known to be neutral, or an error.
llama.cpp's source is what the keys mean.
"""

import logging
import math

from saelora.models.gguf_file import GGUFFile
from saelora.models.gguf_keys import Keys, refused, short
from saelora.models.gguf_rope import rope_parameters
from saelora.models.gguf_tensors import WEIGHTS, check_shapes, tensors
from saelora.records import JsonObject

logger = logging.getLogger(__name__)

_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale attention by d_model / heads
_SHARED_WIDTH = ("qwen2", "phi3", "gpt2")  # d_model = heads x head_dim, in transformers' models
_GPT2_SPLITS = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "smollm")  # split as GPT-2's, or merged as if they were


def stated_config(file: GGUFFile) -> JsonObject:
    """Settings of the transformers configuration that the file states, whatever transformers makes of it.

    Raises:
        InputError: an architecture, a key or a tensor that is not understood, or one that is missing.
    """
    architecture = file.architecture
    if architecture not in WEIGHTS or file.metadata.get("general.type", "model") != "model":
        kind = architecture if file.metadata.get("general.type", "model") == "model" else file.metadata["general.type"]
        raise refused(file, f"is {kind or 'of no stated architecture'}, read are models of {', '.join(WEIGHTS)}")
    keys = Keys(file)
    config = _sizes(keys, architecture) | _attention(keys, architecture) | rope_parameters(keys, architecture)
    config |= tensors(file, architecture, config["num_hidden_layers"])
    check_shapes(file, keys.head_dim, config)
    if (n_words := keys.whole("vocab_size", 0, least=0)) > config["vocab_size"]:
        raise keys.wrong("vocab_size", n_words, f"at most {config['vocab_size']:,}, the rows of token_embd.weight")
    for role, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        config[f"{role}_token_id"] = _token_id(file, f"tokenizer.ggml.{key}_token_id", config["vocab_size"])
    keys.check_rest()
    _warn_of_tokenizer(file)
    return config


def _sizes(keys: Keys, architecture: str) -> JsonObject:
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


def _attention(keys: Keys, architecture: str) -> JsonObject:
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
    config: JsonObject = {"num_attention_heads": n_heads, "num_key_value_heads": n_kv}
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


def _check_pattern(keys: Keys, every: int) -> None:
    """Every n-th layer sees all positions, the others a window: as a number, or layer by layer."""
    told = keys.take_all("attention.sliding_window_pattern")
    layers = [(i + 1) % every != 0 for i in range(keys.stated("block_count"))]
    if told not in (None, every, layers):
        raise keys.unread("attention.sliding_window_pattern", told)


def _token_id(file: GGUFFile, key: str, n_embedded: int) -> int | None:
    """A special token's id, if there is one."""
    value = file.metadata.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_embedded):
        return value
    raise refused(file, f"states {key} = {short(repr(value))}, expected a whole number from 0 to {n_embedded - 1:,}")


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
