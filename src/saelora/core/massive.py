"""Positions that no token policy names and that are sinks all the same: their norms are many times the median.

Which they are hangs on what stands before them (in SmolLM2 one token in eight becomes one directly after BOS, and is
ordinary as a third token), so no list of ids can name them. A limit on the norm does: ``multiple`` times the median of
the clean model's norms at the hookpoint, measured once, on training text without the tokens that the policy exempts.
From then on it is a constant, so that whether a position is spared depends on neither its batch nor a cache.

What is compared with it is what arrives at the hookpoint: where another splice or an adapter lies below, not the clean
activation itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelora.errors import InputError
from saelora.identity import MassivePolicy
from saelora.models.hookpoints import Hookpoint

NAME = "massive"
MULTIPLE = 10.0


@dataclass(frozen=True)
class Massive:
    """A limit on the norm for each hookpoint; those without one are yet to be measured."""

    multiple: float = MULTIPLE
    limits: tuple[tuple[Hookpoint, float], ...] = ()

    @classmethod
    def named(cls, name: str) -> "Massive":
        """From "massive" or "massive:20".

        Raises:
            InputError: what stands after the colon is no number above 1.
        """
        _, colon, number = name.partition(":")
        try:
            multiple = float(number) if colon else MULTIPLE
        except ValueError:
            multiple = math.nan
        if not 1 < multiple < math.inf:
            raise InputError(
                f"token policy names {name!r}: expected massive, or massive:N with N, above 1, the multiple of the "
                "median norm from which on a position is spared"
            )
        return cls(multiple)

    def knows(self, hookpoint: Hookpoint) -> bool:
        return hookpoint in dict(self.limits)

    def limit(self, hookpoint: Hookpoint) -> float:
        """The norm above which a position is spared.

        Raises:
            InputError: it has not been measured.
        """
        for known, limit in self.limits:
            if known == hookpoint:
                return limit
        raise InputError(
            f"massive positions at {hookpoint} cannot be told before the median norm there is known: get the token "
            "mask from saelora.core.calibration.calibrated(token_mask, model, rows, hookpoints)"
        )

    def spared(self, hookpoint: Hookpoint, x: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
        """[batch, seq, d] -> True where the norm is above the limit; what is not a number is not spared."""
        return norms(x.detach()) > self.limit(hookpoint)

    def record(self) -> MassivePolicy:
        """For files."""
        return MassivePolicy(multiple=self.multiple, limits={str(hookpoint): limit for hookpoint, limit in self.limits})

    def with_limits(self, limits: Mapping[Hookpoint, float]) -> "Massive":
        """These limits, and its own where they have none."""
        return replace(self, limits=tuple({**dict(self.limits), **limits}.items()))


def norms(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """[..., d] -> [...], in float32 or wider: squares overflow half precision."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    return length
