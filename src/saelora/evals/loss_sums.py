"""Sums that figures are made of, in float64: losses per row, and an SAE's errors and firing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from saelora.core.group import Group
from saelora.core.massive import Massive
from saelora.core.numerics import ErrorSums, wide
from saelora.core.splice import TokenMask
from saelora.core.spread import Spread
from saelora.errors import InputError
from saelora.evals.intervals import resampled
from saelora.evals.loss_result import SAEFigures
from saelora.evals.variant import SIDE_BY_SIDE, Variant
from saelora.models.hookpoints import Hookpoint

RATIOS = ("gap_closed", *(f"loss_recovered_{variant}" for variant in (Variant.SPLICED, Variant.ADAPTED)))


def check_any(counted: Tensor | np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Raise InputError where no prediction or position counts."""
    if not counted.any():
        raise InputError(
            "nothing to evaluate: no position is replaced by the SAE; expected rows with tokens that the token policy "
            "does not exempt"
        )


@dataclass
class LossSums:
    """Per-row sums over counted predictions; everything reported is derived from them."""

    n: list[float] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=dict)

    def update(self, counted_BP: Tensor, values: dict[str, Tensor]) -> None:
        """Add rows: which predictions count, and each one's values [batch, seq - 1]."""
        self.n += wide(counted_BP).sum(1).tolist()
        for name, value in values.items():
            self.sums.setdefault(name, []).extend(wide(value * counted_BP).sum(1).tolist())

    def extend(self, more: "LossSums") -> None:
        """Add the rows of another."""
        self.n += more.n
        for name, values in more.sums.items():
            self.sums.setdefault(name, []).extend(values)

    def compute(self, seed: int = 0) -> "Means":
        """Means, derived ratios, and 95 % intervals by bootstrap over rows (the same rows for every arm: paired).

        gap_closed is left out where there is no gap (ce_gap <= 0), loss_recovered where zero ablation costs nothing.

        Raises:
            InputError: no prediction counts.
        """
        n = np.array(self.n)
        counted = n > 0
        check_any(counted)
        n = n[counted]
        sums = {name: np.array(values)[counted] for name, values in self.sums.items()}
        drawn_rows = resampled(len(n), seed)
        counts = n[drawn_rows].sum(1)
        point = _derive({k: v.sum() / n.sum() for k, v in sums.items()})
        point = {k: float(v) for k, v in point.items() if k not in RATIOS or np.isfinite(v)}
        drawn = _derive({k: v[drawn_rows].sum(1) / counts for k, v in sums.items()})
        interval = {k: [float(q) for q in np.nanquantile(drawn[k], [0.025, 0.975])] for k in point}
        return Means(point, interval, int(n.sum()))


@dataclass(frozen=True)
class Means:
    """Figures by their names, with 95 % intervals (lower, upper), over ``n`` predictions."""

    point: dict[str, float]
    ci95: dict[str, list[float]]
    n: int

    def plain(self) -> dict[str, object]:
        """As the fields of a ``LossResult``."""
        return {**self.point, "n_tokens_evaluated": self.n, "ci95": self.ci95}


def _derive(means: Mapping[str, Any]) -> dict[str, Any]:
    """Add gap and ratios to means, single ones or [n_draws]; NaN where a ratio has nothing to be a share of."""
    out = dict(means)
    base, sae, adapted, zero = (means.get(v.ce) for v in (*SIDE_BY_SIDE, Variant.ZERO))
    if sae is not None:
        out["ce_gap"] = sae - base
    if sae is not None and adapted is not None:
        out["ce_gain"] = sae - adapted
        out["gap_closed"] = (sae - adapted) / np.where(sae > base, sae - base, np.nan)
    for variant, ce in ((Variant.SPLICED, sae), (Variant.ADAPTED, adapted)):
        if ce is not None and zero is not None:
            out[f"loss_recovered_{variant}"] = (zero - ce) / np.where(zero > base, zero - base, np.nan)
    return out


@dataclass
class SAESums:
    """FVU, its robust companions, L0 and firing of the SAEs in a splice, over the whole evaluation set.

    Args:
        n_most: positions that the token policy leaves to the SAEs in all rows; massive ones are not seen.
        massive: what spares them.
    """

    n_most: int
    massive: Massive | None = None
    sums: dict[Hookpoint, ErrorSums] = field(default_factory=dict)
    fired: dict[Hookpoint, Tensor] = field(default_factory=dict)  # [d_sae], at how many positions
    spreads: dict[Hookpoint, Spread] = field(default_factory=dict)

    @classmethod
    def of(cls, token_mask: TokenMask, rows: Tensor) -> "SAESums":
        """For rows [n_rows, context], all of which are to be seen."""
        return cls(int(token_mask(rows).sum()), token_mask.massive)

    def __call__(self, hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
        """The observer of a splice."""
        x, recon, active = wide(x[mask]), wide(recon[mask]), latents[mask] != 0
        squares = (x - recon).square()
        self._add(hookpoint, ErrorSums(len(x), x.sum(0), x.square().sum(), squares.sum()), wide(active.sum(0)))
        self.spreads.setdefault(hookpoint, Spread(self.n_most)).add(x, squares.sum(-1))

    def _add(self, hookpoint: Hookpoint, sums: ErrorSums, fired_S: Tensor) -> None:
        first = hookpoint not in self.sums
        self.sums[hookpoint] = sums if first else self.sums[hookpoint] + sums
        self.fired[hookpoint] = fired_S if first else self.fired[hookpoint] + fired_S

    def over(self, group: Group) -> "SAESums":
        """The sums of all processes."""
        total = SAESums(self.n_most, self.massive)
        own = {h: (self.sums[h].cpu(), self.fired[h].cpu(), self.spreads[h].cpu()) for h in self.sums}
        parts = group.gather(own)
        for part in parts:
            for hookpoint, (sums, fired_S, _) in part.items():
                total._add(hookpoint, sums, fired_S)
        for hookpoint in total.sums:
            total.spreads[hookpoint] = Spread.together(part[hookpoint][2] for part in parts if hookpoint in part)
        return total

    def compute(self) -> dict[str, SAEFigures]:
        """By hookpoint.

        Where massive positions are spared, also n_massive, how many were, of n_positions, and massive_limit, the norm.
        """
        out = {}
        for hookpoint, sums in self.sums.items():
            fired_S = self.fired[hookpoint]
            found: dict[str, float] = {
                "fvu": float(sums.fvu),
                **self.spreads[hookpoint].figures(sums),
                "l0": float(fired_S.sum() / sums.n),
                "dead_frac": float((fired_S == 0).double().mean()),
            }
            if self.massive is not None:
                found |= {"n_massive": self.n_most - self.spreads[hookpoint].n, "n_positions": self.n_most}
                found["massive_limit"] = self.massive.limit(hookpoint)
            out[str(hookpoint)] = SAEFigures(**found)
        return out
