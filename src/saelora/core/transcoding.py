"""Transcoders in a splice: what they read, and the MLP that need not run where they write.

What replaces the MLP's output is the same hook as an SAE's; this only spares the work. Positions that the token policy
leaves alone go through the MLP by themselves, which for a module that acts on each token alone gives what it would give
among the others, up to rounding.

Shapes: B rows, S tokens, D d_model, N positions of B x S.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelora.core.partial import first_input
from saelora.errors import InputError
from saelora.models.anatomy import Anatomy
from saelora.models.hookpoints import Hookpoint, ReadSite

WRITES = ("mlp_out", "mlp_module_out")
Forward = Callable[..., Any]


@runtime_checkable
class Transcoder(Protocol):
    """What a splice needs of a transcoder beside ``encode`` and ``decode``: where it reads, in the layer it writes in.

    One with a skip connection has ``skip(x)`` too, [..., d_in] -> [..., d_out]; it is added to what ``decode`` gives.
    """

    reads: ReadSite


def transcoder_in(sae: Any) -> Any:
    """The transcoder, where this is one, or one in a wrapper; None where it is not."""
    while not hasattr(sae, "reads") and hasattr(sae, "sae"):
        sae = sae.sae
    return sae if isinstance(sae, Transcoder) else None


def check_writers(saes: dict[Hookpoint, Any]) -> None:
    """Raise InputError where a transcoder writes elsewhere than an MLP does, or something else writes there too."""
    for hookpoint, sae in saes.items():
        if transcoder_in(sae) is not None:
            check_writer(hookpoint, saes)


def check_writer(hookpoint: Hookpoint, beside: Iterable[Hookpoint]) -> None:
    """Raise InputError where no MLP writes, or something else writes there too."""
    if hookpoint.site not in WRITES:
        raise InputError(
            f"a transcoder cannot write at {hookpoint}: it stands for an MLP, whose output is layers."
            f"{hookpoint.layer}.mlp_out (or mlp_module_out, before a norm behind it)"
        )
    others = [h for h in beside if h.layer == hookpoint.layer and h.site in WRITES and h != hookpoint]
    if others:
        raise InputError(
            f"the MLP of layer {hookpoint.layer} has two writers, at {hookpoint} and {others[0]}: give one of them"
        )


def check_widths(anatomy: Anatomy, hookpoint: Hookpoint, transcoder: Any) -> None:
    """Raise InputError where a transcoder's widths are not those of the model."""
    for name, verb in (("d_in", "reads"), ("d_out", "writes")):
        width = getattr(getattr(transcoder, "cfg", transcoder), name, anatomy.d_model)
        if width != anatomy.d_model:
            raise InputError(
                f"transcoder at {hookpoint} {verb} {name} {width}, this model has d_model {anatomy.d_model}: "
                "is it for another model?"
            )


def skipped(transcoder: Any, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
    """What a skip connection adds; None where there is none."""
    skip = getattr(transcoder, "skip", None)
    made: Tensor | None = None if skip is None else skip(x)
    return made


class Exempt:
    """The positions of a mask that are False; looked up once for each mask, since a GPU has to be waited for."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._index_N = torch.empty(0, dtype=torch.long)

    def index(self, mask_BS: Bool[Tensor, "batch seq"]) -> Int[Tensor, " n"]:
        if self._mask is not mask_BS:
            self._mask, self._index_N = mask_BS, (~mask_BS).flatten().nonzero()[:, 0]
        return self._index_N


def only_at(forward: Forward, index_N: Int[Tensor, " n"], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An MLP's output at some positions, with zeros elsewhere; the whole of it where the module is no plain MLP."""
    x_BSD = first_input(args, kwargs)
    if len(args) + len(kwargs) > 1 or x_BSD.dim() != 3:
        return forward(*args, **kwargs)
    flat = x_BSD.flatten(0, 1)
    if not len(index_N):
        half = torch.is_autocast_enabled(x_BSD.device.type)
        return torch.zeros_like(x_BSD, dtype=torch.get_autocast_dtype(x_BSD.device.type) if half else x_BSD.dtype)
    made = forward(flat[index_N][None])
    if not isinstance(made, Tensor) or made.shape != (1, len(index_N), x_BSD.shape[-1]):
        return forward(*args, **kwargs)
    return made.new_zeros(flat.shape).index_copy(0, index_N, made[0]).view_as(x_BSD)


class StandIn:
    """Is called in place of a module's ``forward``, for as long as it is not removed; several may be stacked."""

    def __init__(self, module: nn.Module, instead: Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]):
        """``instead`` is called with the forward that was there, and what that would be called with."""
        self._module, self._own = module, "forward" in vars(module)
        self.inner: Any = module.forward
        self._instead = instead
        self.calls = partial(self._call)
        self.calls.stand_in = self  # type: ignore[attr-defined]
        module.forward = self.calls

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self._instead(self.inner, args, kwargs)

    def remove(self) -> None:
        """Put back what was there, whichever others came since."""
        if self._module.forward is self.calls:
            if self._own:
                self._module.forward = self.inner
            else:
                del self._module.forward
            return
        above = getattr(self._module.forward, "stand_in", None)
        while above is not None and above.inner is not self.calls:
            above = getattr(above.inner, "stand_in", None)
        if above is not None:
            above.inner, above._own = self.inner, self._own
        else:  # somebody else has put a forward round it: it only hands on from now on
            self._instead = lambda inner, args, kwargs: inner(*args, **kwargs)
