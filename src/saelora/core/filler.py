"""What an SAE is handed at positions that it leaves alone.

Not their activations: those of BOS would overflow half precision and poison the gradient. What the SAE makes of its
input there is thrown away, but a gradient of NaN is not: 0 times NaN is NaN.
"""

from typing import Any

import torch
from torch import Tensor, nn

from saelora.saes.saelens import NORMALISATIONS, unwrapped


def filler(sae: Any, width: int) -> float:
    """The number that stands in every dimension of a spared position's input.

    0.0; and 1.0 for an SAE that is not finite there, in value or gradient, such as one that divides by its input's
    norm (SAELens's ``constant_norm_rescale``).
    """
    inner = unwrapped(sae)
    normalisation = getattr(getattr(inner, "cfg", None), "normalize_activations", None)
    if normalisation in NORMALISATIONS:
        return 1.0 if normalisation == "constant_norm_rescale" else 0.0
    return 1.0 if not _finite_at(inner, 0.0, width) and _finite_at(inner, 1.0, width) else 0.0


def _finite_at(sae: Any, value: float, width: int) -> bool:
    """Whether reconstruction and gradient are finite where every dimension has this value; an error says nothing."""
    like = next(sae.parameters(), torch.zeros(())) if isinstance(sae, nn.Module) else torch.zeros(())
    x: Tensor = torch.full((1, 1, width), value, dtype=like.dtype, device=like.device, requires_grad=True)
    try:
        with torch.enable_grad():
            recon = sae.decode(sae.encode(x))
            (gradient,) = torch.autograd.grad(recon.sum(), x, allow_unused=True) if recon.requires_grad else (None,)
    except Exception:  # a foreign SAE: what is wrong with it shows where it is used
        return True
    return bool(recon.isfinite().all()) and (gradient is None or bool(gradient.isfinite().all()))
