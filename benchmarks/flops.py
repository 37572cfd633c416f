"""Floating-point operations that a distillation step needs, counted from the model's shapes (a multiply-add is two).

Counted: teacher's forward, student's forward and backward to its inputs above the entry layer, attention's products
over causal pairs (windows are ignored), LoRA, three products with the unembedding, the SAE's encoder and its active
latents' decoder rows. Not counted: the gradient of frozen weights, recomputation, element-wise work.
"""

from typing import Any

from torch import nn

from saelora.models.anatomy import anatomy_of

_READS_LAYER_INPUT = ("q_proj", "k_proj", "v_proj")  # no gradient flows out of these in the lowest trained layer


def useful_flops(model: nn.Module, n_rows: int, context: int, entry: int, rank: int, d_sae: int, k: int) -> float:
    """Operations of one step with adapters on all linears of all layers above ``entry``, where the SAE sits."""
    anatomy = anatomy_of(model)
    tokens = n_rows * context
    attention = _attention(model, n_rows, context)
    total = 3 * 2 * tokens * anatomy.d_model * anatomy.d_vocab  # teacher's and student's logits, their gradient
    total += 2 * tokens * anatomy.d_model * (d_sae + k)
    for index, layer in enumerate(anatomy.layers):
        for name, (d_in, d_out) in _linears(layer).items():
            dense, down, up = 2 * tokens * d_in * d_out, 2 * tokens * rank * d_in, 2 * tokens * rank * d_out
            total += dense
            if index > entry:
                total += dense + down + up  # student's forward
                total += down + 2 * up  # gradients of A and B, and what reaches A's output
                if index > entry + 1 or not name.endswith(_READS_LAYER_INPUT):
                    total += dense + down  # gradient of the input
        total += attention * (1 + 3 * (index > entry))  # backward has four products for forward's two
    return float(total)


def _linears(layer: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of the frozen linears inside a layer."""
    found: dict[str, Any] = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    return {
        n.removesuffix(".base_layer"): (m.in_features, m.out_features) for n, m in found.items() if "lora_" not in n
    }


def _attention(model: nn.Module, n_rows: int, context: int) -> int:
    """Scores and weighted values of one layer's forward."""
    config: Any = anatomy_of(model).stack.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = n_rows * context * (context + 1) // 2
    return 2 * 2 * pairs * config.num_attention_heads * d_head
