"""Tiny models written as GGUF files, as llama.cpp's convert_hf_to_gguf.py writes them."""

import re

import torch
from gguf import GGUFWriter
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = ["<unk>", "<s>", "</s>", "ab", *sorted(pre_tokenizers.ByteLevel.alphabet())]
SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_TOP = {"embed_tokens": "token_embd", "wte": "token_embd", "wpe": "position_embd", "norm": "output_norm"}
_TOP |= {"ln_f": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def made_model(architecture, **options):
    """A random model; biases and norms too, so that losing one shows."""
    torch.manual_seed(0)
    kind = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    sizes = dict(SIZES)
    if architecture == "gpt2":
        sizes = {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
    config = AutoConfig.for_model(kind, **{**sizes, "pad_token_id": None, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1) * 0.5)
    return model


def permuted(weight, n_heads):
    """Rotary halves interleaved, as llama.cpp stores the q and k projections of a llama."""
    return weight.reshape(n_heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def tensors_of(model, architecture):
    """The tensors of a GGUF file by name."""
    found = {}
    config = model.config
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, kind = name.rpartition(".")
        stem = re.sub(r"^(model|transformer)\.", "", stem)
        layer = re.fullmatch(r"(?:layers|h)\.(\d+)\.(.+)", stem)
        names = _LAYER | (_SANDWICH if architecture.startswith("gemma") else {})
        short = f"blk.{layer[1]}.{names[layer[2]]}" if layer else _TOP[stem]
        if architecture == "llama" and short.endswith((".attn_q", ".attn_k")):
            weight = permuted(weight, getattr(config, f"num_{'attention' if short[-1] == 'q' else 'key_value'}_heads"))
        if architecture.startswith("gemma") and "norm" in short:
            weight = weight + 1
        if architecture == "gpt2" and layer and weight.dim() == 2:
            weight = weight.T
        found[f"{short}.{kind}"] = weight.contiguous().numpy()
    return found


def metadata_of(model, architecture):
    """What llama.cpp's converter writes for every model of an architecture."""
    config = model.config
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if architecture == "gpt2":
        return found | {"feed_forward_length": config.n_inner, "attention.layer_norm_epsilon": 1e-5}
    found |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": 10000.0,
    }
    if architecture in ("llama", "phi3"):
        found["rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    if architecture in ("qwen3", "gemma2", "gemma3"):
        found |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture.startswith("gemma"):
        found["attention.sliding_window"] = config.sliding_window
    return found


def write_gguf(path, tensors, architecture, metadata, *, shard=None, general=None):
    """One file; ``shard`` is (number, count, tensors of all shards)."""
    writer = GGUFWriter(path, architecture)
    for key, value in (general or {}).items():
        writer.add_string(key, value)
    if shard is None or shard[0] == 0:
        for key, value in metadata.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            if type(value) is int and value < 0:
                add[int] = writer.add_int32
            add.get(type(value), writer.add_array)(f"{architecture}.{key}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(VOCABULARY)
        writer.add_token_types([3] * 3 + [1] * 257)
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    if shard is not None:
        writer.add_uint16("split.no", shard[0])
        writer.add_uint16("split.count", shard[1])
        writer.add_int32("split.tensors.count", shard[2])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_shards(folder, tensors, architecture, metadata, count=3, stem="tiny"):
    """A split model, the tensors dealt out in turn; gives back the files."""
    paths = []
    for i in range(count):
        own = dict(list(tensors.items())[i::count])
        path = folder / f"{stem}-{i + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_gguf(path, own, architecture, metadata, shard=(i, count, len(tensors))))
    return paths
