"""A llama of two layers in a GGUF file, as llama.cpp would write it."""

import torch
from gguf import GGUFWriter
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA = LlamaConfig(
    vocab_size=260,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


def byte_vocabulary():
    """The 256 byte symbols of byte-level BPE three special tokens and one merge."""
    return ["<unk>", "<s>", "</s>", "ab", *sorted(pre_tokenizers.ByteLevel.alphabet())]


def permuted(weight, n_heads):
    """Rotary halves interleaved, as llama.cpp stores the q and k projections."""
    return weight.reshape(n_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def save_gguf(path, dtype=torch.float16):
    """A Llama of two layers written as llama.cpp would write it; gives back its weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLAMA).to(dtype)
    state = model.state_dict()
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(byte_vocabulary())
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names |= {f"model.layers.{i}.{hf}": f"blk.{i}.{short}" for i in range(2) for hf, short in parts.items()}
    for hf, short in names.items():
        weight = state[f"{hf}.weight"]
        if "q_proj" in hf or "k_proj" in hf:
            weight = permuted(weight, 4 if "q_proj" in hf else 2)
        writer.add_tensor(f"{short}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state
