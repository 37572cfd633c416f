"""PEFT's LoRA layer with a forward pass of fewer tensors; imported where a model is wrapped: PEFT takes a while."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

ONE_CAST = ("cuda",)  # kinds of device on which autocast's casts of the input are left out


class FusedLinear(Linear):
    """PEFT's layer; a class and not a function for each layer, so that compiled code of one layer is all layers'."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add the adapter's product straight into the frozen layer's output, in place."""
        adapter = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        plain = not self._disable_adapters and not self.merged_adapters and not args and not kwargs
        if not plain or adapter not in self.lora_A or adapter in self.lora_variant:
            return self._as_peft(x, *args, **kwargs)
        low, up = self.lora_A[adapter], self.lora_B[adapter]
        if up.bias is not None or not _one_precision(x, low.weight):
            return self._as_peft(x, *args, **kwargs)
        out: Tensor = self.base_layer(x)
        if out.dtype != x.dtype or not out.is_contiguous():
            return self._as_peft(x, *args, **kwargs)
        scaled = low(self.lora_dropout[adapter](x)) * self.scaling[adapter]
        return out.view(-1, out.shape[-1]).addmm_(scaled.flatten(0, -2), up.weight.T.to(out.dtype)).view(out.shape)

    def _as_peft(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = super().forward(x, *args, **kwargs)
        return found


def _one_precision(x: Tensor, weight: Tensor) -> bool:
    """Whether a product with the weight needs no cast of the input: under autocast the weight alone is cast."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return kind in ONE_CAST and x.dtype == torch.get_autocast_dtype(kind)
    return weight.dtype == x.dtype
