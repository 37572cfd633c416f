"""Two ways to steer along a latent's direction d, the unit-norm row of its decoder.

Both stand where an SAE would in a splice: its hooks, its token mask and its restoring of the model serve them too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelora.models.hookpoints import Hookpoint
from saelora.saes.processing import is_centred


def direction(sae: Any, latent: int, hookpoint: Hookpoint) -> tuple[Tensor, float]:
    """A latent's decoder row [d_in] at unit norm, and the norm it has in the SAE.

    Of an SAE of a centred model it is the row without its mean: that part of it changes no logits, and the plain
    model's activations have a mean that theirs have not.
    """
    row = sae.W_dec[latent].detach()
    norm = float(row.norm())
    unit = row / max(norm, 1e-30)
    return unit - unit.mean() if is_centred(sae, hookpoint) else unit, norm


@dataclass(frozen=True)
class Scale:
    """h <- h + alpha (h . d) d: multiplies the component along d by 1 + alpha; -1 takes it away.

    Source: arXiv 2501.19406, the steering experiments.
    """

    d: Tensor
    alpha: float

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, feature_acts: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_in]; the product is formed in float32 at least."""
        dtype = torch.promote_types(feature_acts.dtype, torch.float32)
        x, d = feature_acts.to(dtype), self.d.to(dtype)
        return x + self.alpha * (x * d).sum(-1, keepdim=True) * d


@dataclass(frozen=True)
class Add:
    """Activation addition: h <- h + alpha * unit * d, the same at every position."""

    d: Tensor
    alpha: float
    unit: float

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, feature_acts: Tensor) -> Tensor:
        dtype = torch.promote_types(feature_acts.dtype, torch.float32)
        return feature_acts.to(dtype) + self.alpha * self.unit * self.d.to(dtype)


Intervention = Scale | Add


def intervention(method: str, d: Tensor, alpha: float, unit: float) -> Intervention:
    """The intervention of a method, "scale" or "add"."""
    return Scale(d, alpha) if method == "scale" else Add(d, alpha, unit)
