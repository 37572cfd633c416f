"""The unembedding as a matrix, read off its module or found by calling it.

Losses are formed from final hidden states in chunks (``saelora.core.kl_head``), which needs the matrix. A plain linear
layer holds it. An adapter on the unembedding, a trained copy of it, weights that stay on disk until they are used, or
packed ones (4 bits) do not: there the module is called with the unit vectors, and its answers are the matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.core import lora
from saelora.models.anatomy import anatomy_of, device_of

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Head:
    """The frozen unembedding: hidden states after the final norm -> logits."""

    weight: Float[Tensor, "d_vocab d_model"]
    bias: Float[Tensor, " d_vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(
        self, hidden: Float[Tensor, "*tokens d_model"], out: Float[Tensor, "n_tokens d_vocab"] | None = None
    ) -> Float[Tensor, "*tokens d_vocab"]:
        """[..., d_model] -> [..., d_vocab], in float32 (float64 stays float64).

        Without gradient, ``out`` [n_tokens, d_vocab] receives them and no other tensor of that size is made.
        """
        hidden = hidden.to(self.weight.dtype)
        if out is None:
            logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        if out.dtype == self.weight.dtype:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            out.copy_(hidden @ self.weight.T)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= self.scale
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)


@torch.no_grad()
def head_of(model: nn.Module, adapter: lora.Adapter = None) -> Head:
    """The unembedding of a model with an adapter (None: without any), as a matrix."""
    anatomy = anatomy_of(model)
    module = anatomy.unembedding
    if _plain(module):
        return Head(module.weight, module.bias, anatomy.logit_scale, anatomy.softcap)  # type: ignore[arg-type]
    with lora.only(model, adapter):
        if lora.is_wrapper(module) and not lora.holds(module, adapter) and _plain(base := lora.inside(module)):
            return Head(base.weight, base.bias, anatomy.logit_scale, anatomy.softcap)  # type: ignore[arg-type]
        bias_V = _answers(model, module, torch.zeros(1, anatomy.d_model))[0]
        rows_VD = torch.cat(list(_columns(model, module, anatomy.d_model))).T
    bias = bias_V if bias_V.any() else None
    weight = (rows_VD if bias is None else rows_VD - bias[:, None]).contiguous()
    return Head(weight, bias, anatomy.logit_scale, anatomy.softcap)


def _plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer and nothing else happens in its forward pass."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight.data
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(weight) is Tensor and weight.is_floating_point() and weight.device.type != "meta" and not hooked


def _columns(model: nn.Module, module: nn.Module, d_model: int) -> Iterator[Tensor]:
    """Of the matrix [V, D], columns by the hundreds, each a row of what is yielded."""
    for unit_CD in torch.eye(d_model).split(_ROWS_AT_ONCE):
        yield _answers(model, module, unit_CD)


def _answers(model: nn.Module, module: nn.Module, hidden_CD: Tensor) -> Tensor:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    logits: Tensor = module(hidden_CD.to(device_of(model), dtype))
    return logits.detach()
