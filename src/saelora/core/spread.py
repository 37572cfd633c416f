"""How an SAE's error and the variance are spread over tokens: figures that no token or two can make.

FVU is a ratio of two sums, and a few tokens of huge norm can be most of both: it then says how well those few are
reconstructed. Beside it stand, everywhere:

- relative_error, relative_error_q10, relative_error_q90: median and 10 % and 90 % quantiles over tokens of
  |x - recon|^2 / |x|^2. About 0 and not the mean, so that one number a token is all that has to be kept.
- top_variance: the part of the variance (squared distance from the mean of all tokens) that the largest 0.1 % of
  tokens hold, those of the largest norms; at least one token.
- fvu_rest: the FVU of all other tokens, about their own mean.

All are exact, whatever the batches and processes that the tokens came in.

Suffixes: N tokens, D width, K of the largest tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.core.numerics import ErrorSums

FIGURES = ("relative_error", "relative_error_q10", "relative_error_q90", "top_variance", "fvu_rest")
_QUANTILES = {"relative_error": 0.5, "relative_error_q10": 0.1, "relative_error_q90": 0.9}
_TINY = 1e-30  # a token of norm 0 has no relative error; this keeps it a number


def n_largest(n: int) -> int:
    """0.1 % of n tokens, rounded up."""
    return -(-n // 1000)


@dataclass
class Spread:
    """The tokens that one SAE has seen: a number for each, and the vectors of the largest few.

    Args:
        n_most: the number of tokens is never above this, so that a thousandth of it is all that need be remembered.
    """

    n_most: int
    n: int = 0
    relative: list[Float[Tensor, " _"]] = field(default_factory=list)  # squared errors over squared norms
    # squared norms in descending order, squared errors, x
    top: tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, "K D"]] | None = None

    def add(self, x_ND: Float[Tensor, "N D"], error_N: Float[Tensor, " N"]) -> None:
        """Add tokens of one floating type, without gradient: what the SAE was given, and its squared errors."""
        square_N = x_ND.square().sum(-1)
        self.n += len(x_ND)
        self.relative.append(error_N / square_N.clamp(min=_TINY))
        chosen = square_N.topk(min(len(x_ND), n_largest(self.n_most))).indices
        self._keep(square_N[chosen], error_N[chosen], x_ND[chosen])

    def _keep(self, square_K: Tensor, error_K: Tensor, x_KD: Tensor) -> None:
        found = (square_K, error_K, x_KD)
        if self.top is not None:
            both = [torch.cat(pair) for pair in zip(self.top, found, strict=True)]
            chosen = both[0].topk(min(len(both[0]), n_largest(self.n_most))).indices
            found = (both[0][chosen], both[1][chosen], both[2][chosen])
        self.top = found

    def cpu(self) -> "Spread":
        """A copy that can be sent to another process."""
        top = None if self.top is None else (self.top[0].cpu(), self.top[1].cpu(), self.top[2].cpu())
        return Spread(self.n_most, self.n, [part.cpu() for part in self.relative], top)

    @classmethod
    def together(cls, parts: Iterable["Spread"]) -> "Spread":
        """What one would hold that had seen the tokens of all."""
        parts = list(parts)
        whole = cls(max((part.n_most for part in parts), default=0))
        for part in parts:
            whole.n += part.n
            whole.relative += part.relative
            if part.top is not None:
                whole._keep(*part.top)
        return whole

    def errors(self) -> dict[str, Float[Tensor, ""]]:
        """Median and quantiles of the relative error, as 0-d tensors; a token's NaN makes all of them NaN."""
        found_N = torch.cat(self.relative).sort().values
        return {name: _quantile(found_N, q) for name, q in _QUANTILES.items()}

    def top_variance(self, mean_D: Float[Tensor, " D"], variation: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The largest tokens' part of ``variation``, the sum of all tokens' squared distances from their mean."""
        _, _, x_KD = self._largest()
        return (x_KD - mean_D).square().sum() / variation

    def fvu_rest(self, sums: ErrorSums) -> Float[Tensor, ""]:
        """The FVU of all but the largest tokens, from all tokens' sums; NaN where fewer than two tokens are left."""
        square_K, error_K, x_KD = self._largest()
        rest = sums - ErrorSums(len(x_KD), x_KD.sum(0), square_K.sum(), error_K.sum())
        return rest.fvu if self.n - len(x_KD) > 1 else torch.full_like(sums.squares, torch.nan)

    def figures(self, sums: ErrorSums) -> dict[str, float]:
        """FIGURES, from all tokens' sums in float64 on the device of what was added."""
        found = {
            **self.errors(),
            "top_variance": self.top_variance(sums.x_D / sums.n, sums.variation),
            "fvu_rest": self.fvu_rest(sums),
        }
        return {name: float(value) for name, value in found.items()}

    def _largest(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.top is not None
        k = n_largest(self.n)
        return self.top[0][:k], self.top[1][:k], self.top[2][:k]


def _quantile(sorted_N: Tensor, q: float) -> Tensor:
    """By linear interpolation, as numpy's; torch.quantile takes 16 million numbers at most, and sorts for each q."""
    if sorted_N[-1:].numel() == 0:
        return sorted_N.new_full((), torch.nan)
    at = q * (len(sorted_N) - 1)
    low = int(at)
    high = min(low + 1, len(sorted_N) - 1)
    return torch.where(sorted_N[-1].isnan(), sorted_N[-1], sorted_N[low].lerp(sorted_N[high], at - low))
