"""A model with its adapter folded into its weights, as a copy: what tools outside PEFT can read."""

import copy
from typing import Any

from torch import Tensor, nn

from saelora.core import lora


def plain_copy(model: nn.Module, *, merged: bool) -> Any:
    """The transformers model inside, copied to the CPU without hooks; the model itself is left as it is.

    Args:
        model: a transformers decoder, PEFT-wrapped or not, with hooks or without.
        merged: with its adapter merged into the weights, in their own precision; else without the adapter.
    """
    plain = _unwrapped(_copy_on_cpu(model), merged and bool(lora.adapted_layers(model)))
    # transformers refuses to save what was read from a GGUF file, though the weights are plain floats by now
    plain.hf_quantizer, plain.is_quantized = None, False
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    return plain


def _unwrapped(model: Any, merged: bool) -> Any:
    if not hasattr(model, "merge_and_unload"):
        return model
    return model.merge_and_unload() if merged else model.unload()


def _copy_on_cpu(model: nn.Module) -> Any:
    """A copy whose tensors are on the CPU and which carries no hooks: those belong to whoever opened a splice."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            memo[id(getattr(module, hooks))] = type(getattr(module, hooks))()
    for tensor in [*model.parameters(), *model.buffers()]:
        memo[id(tensor)] = _on_cpu(tensor)
    return copy.deepcopy(model, memo)


def _on_cpu(tensor: Tensor) -> Tensor:
    copied = tensor.detach().to("cpu", copy=True)
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
