"""A norm without its gain and bias: TransformerLens' ln2.hook_normalized, which no module of a model returns."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.errors import InputError

Rule = Callable[[Float[Tensor, "*batch d"]], Float[Tensor, "*batch d"]]
_EPSILONS = ("eps", "variance_epsilon")
_ROUNDINGS = 64


@torch.no_grad()
def without_gain(norm: nn.Module, width: int, what: str) -> Rule:
    """What a norm does before it multiplies by its gain and adds its bias.

    Told by its own numbers: with gain (or 1 + gain, as Gemma has it) and bias put back, RMSNorm or LayerNorm must give
    what the module gives.

    Raises:
        InputError: neither does.
    """
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    eps = next((float(getattr(norm, name)) for name in _EPSILONS if hasattr(norm, name)), 0.0)
    like = weight if isinstance(weight, Tensor) else bias if isinstance(bias, Tensor) else torch.zeros(())
    if not isinstance(weight, Tensor) and not isinstance(bias, Tensor):
        return norm.forward  # it has none
    if like.device.type == "meta":
        raise InputError(f"{what} cannot be read: the norm's weights are kept on disk until it runs; load it whole")
    drawn = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    x = (drawn + 0.5).to(like.device, like.dtype)
    made = norm(x)
    coarse = max(torch.finfo(dtype).eps for dtype in (made.dtype, torch.float32))  # where norms compute at the least
    allowed = _ROUNDINGS * coarse * max(1.0, made.abs().max().item())
    for centred in (False, True):
        rule = partial(_normalised, eps=eps, centred=centred)
        for gain in _gains(weight):
            again = rule(x).to(made) * gain.to(made) + (bias.to(made) if isinstance(bias, Tensor) else 0)
            if (again - made).abs().max().item() <= allowed:
                return rule
    raise InputError(
        f"{what} cannot be read: {type(norm).__name__} is neither RMSNorm nor LayerNorm, so that its output without "
        "the gain is not known"
    )


def _gains(weight: object) -> list[Tensor]:
    return [weight, 1 + weight] if isinstance(weight, Tensor) else [torch.ones(())]


def _normalised(x: Float[Tensor, "*batch d"], *, eps: float, centred: bool) -> Float[Tensor, "*batch d"]:
    """[..., d] over its root mean square (centred: over its standard deviation, its mean taken off)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide - wide.mean(-1, keepdim=True) if centred else wide
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
