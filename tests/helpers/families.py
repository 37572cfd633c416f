"""Tiny random decoders, one of each family (and of each set-up within it) that the anatomy table knows.

Weights are large enough that outputs are far from uniform, head widths differ from d_model / n_heads where the
family allows it, and windows and soft caps are small enough to act.
"""

from functools import cache
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

VOCAB, D_MODEL, N_LAYERS = 64, 16, 4
PAD, BOS, EOS = 0, 1, 2
WINDOW = 4

_IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_BASE: dict[str, Any] = {
    **_IDS,
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 20,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_WIDE = {"head_dim": 6}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * (N_LAYERS // 2)}
_GEMMA = {**_BASE, **_WIDE, "tie_word_embeddings": True}
_SOFTCAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_NEOX = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_QWEN2_SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
_GPT2 = {"vocab_size": VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 2, "n_positions": 64, **_IDS}

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_BASE, **_WIDE}),
    "mistral": ("Mistral", {**_BASE, **_WIDE, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {**_BASE, "tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", {**_BASE, **_QWEN2_SLIDING}),
    "qwen3": ("Qwen3", {**_BASE, **_WIDE}),
    "gemma": ("Gemma", _GEMMA),
    "gemma2": ("Gemma2", {**_GEMMA, **_ALTERNATING, **_SOFTCAPS, "attn_implementation": "eager_clamped"}),
    "gemma3": ("Gemma3", {**_GEMMA, **_ALTERNATING}),
    "olmo": ("Olmo", _BASE),
    "olmo2": ("Olmo2", _BASE),
    "olmo3": ("Olmo3", {**_BASE, **_ALTERNATING}),
    "phi": ("Phi", _BASE),
    "phi3": ("Phi3", {**_BASE, "sliding_window": WINDOW}),
    "gpt_neox-parallel": ("GPTNeoX", {**_NEOX, "use_parallel_residual": True}),
    "gpt_neox-serial": ("GPTNeoX", {**_NEOX, "use_parallel_residual": False}),
    "gpt2": ("GPT2", _GPT2),
}
_MIXED = {"layer_types": ["linear_attention", "full_attention"] * (N_LAYERS // 2)}
_DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 3,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 8}
_QWEN35 = {**_BASE, **_WIDE, **_MIXED, **_DELTA_NET}
_LATENT_ATTENTION = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 2,
}
_DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_MAMBA = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_GEMMA4 = {**_GEMMA, **_ALTERNATING, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCAB}

# Not in the table: their anatomy is derived (saelora.models.derived).
_UNTABLED: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm3": ("SmolLM3", _BASE),
    "ministral": ("Ministral", {**_BASE, **_WIDE}),
    "ministral3": ("Ministral3", {**_BASE, **_WIDE}),
    "granite": ("Granite", {**_BASE, "residual_multiplier": 0.5, "logits_scaling": 3.0}),
    "cohere2": ("Cohere2", {**_BASE, "logit_scale": 0.25}),
    "glm4": ("Glm4", {**_BASE, **_WIDE}),
    "bloom": ("Bloom", {"vocab_size": VOCAB, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": 2, **_IDS}),
    "qwen3_moe": ("Qwen3Moe", {**_BASE, **_WIDE, **_EXPERTS}),
    "qwen3_5": ("Qwen3_5", _QWEN35),
    "qwen3_5_moe": ("Qwen3_5Moe", {**_QWEN35, **_SHARED}),
    "gpt_oss": (
        "GptOss",
        {**_BASE, **_WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "deepseek_v3": ("DeepseekV3", {**_BASE, **_LATENT_ATTENTION, **_DEEPSEEK, "moe_intermediate_size": 8}),
    "llama4": (
        "Llama4",
        {**_BASE, **_WIDE, "num_local_experts": 2, "intermediate_size_mlp": 20, "interleave_moe_layer_step": 2},
    ),
    "gemma4": ("Gemma4", _GEMMA4),
    "falcon_h1": ("FalconH1", {**_BASE, **_MAMBA, "mamba_chunk_size": 4}),
}
UNTABLED = list(_UNTABLED)
WITH_IMAGES = "gemma3-images"
NAMES = [*_FAMILIES, WITH_IMAGES]


def _eager_clamped(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **options: Any) -> Any:
    """Gemma 2's attention. Its softmax is in float32, where float64's most negative mask would be -inf, and NaN."""
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    lowest = torch.finfo(torch.float32).min
    return eager_attention_forward(module, q, k, v, mask.clamp(min=lowest), **options)


@cache
def _register() -> None:
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    tf.AttentionInterface.register("eager_clamped", _eager_clamped)
    AttentionMaskInterface.register("eager_clamped", eager_mask)


def _randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = 0.2 if parameter.dim() < 2 else 1.0 if "emb" in name or "wte" in name else 0.35
        noise = spread * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data = noise if parameter.dim() > 1 else parameter.data + noise


def _gemma3_with_images() -> nn.Module:
    text = tf.Gemma3TextConfig(**{**_GEMMA, **_ALTERNATING})
    vision = tf.SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=VOCAB - 1)
    return tf.Gemma3ForConditionalGeneration(config)


@cache
def tiny(name: str) -> nn.Module:
    """The family's model in float64, frozen, in evaluation mode. Shared: copy before changing it."""
    _register()
    if name == WITH_IMAGES:
        model = _gemma3_with_images()
    else:
        prefix, options = (_FAMILIES | _UNTABLED)[name]
        config_name = next(each for each in (f"{prefix}TextConfig", f"{prefix}Config") if hasattr(tf, each))
        model_name = "GPT2LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM"
        config = getattr(tf, config_name)(**options)
        config._experts_implementation = "eager"  # the grouped one knows no float64
        model = getattr(tf, model_name)(config)
    model = model.double()
    _randomise(model)
    return model.eval().requires_grad_(False)
