"""Models of named shapes with random weights; without saelora, so that other versions of it can be timed on them."""

from typing import Any

import torch

SAES = {
    "tiny": (1, 128, 4),
    "gemma2-2b": (12, 16_384, 82),
    "smollm2-135m": (12, 4_608, 32),
}  # layer, d_sae, active latents


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    import transformers as tf

    if shape == "gemma2-2b":
        # Gemma2Config's defaults are Gemma 2 9B's in part: the 2B model's are given in full
        config: Any = tf.Gemma2Config(
            vocab_size=256_000,
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            sliding_window=4096,
            query_pre_attn_scalar=256,
        )
    elif shape == "smollm2-135m":
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        config = tf.LlamaConfig(
            vocab_size=49_152, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, **sizes
        )
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
        config = tf.LlamaConfig(vocab_size=96, num_key_value_heads=1, max_position_embeddings=512, **sizes)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = tf.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
