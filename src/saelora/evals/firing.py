"""Whether an SAE's latents fire under one model as under another, at the same positions of the same text.

Shapes: B rows of a batch, S tokens, D width, F latents, R all rows, K blocks of rows.
"""

import numpy as np
import torch
from torch import Tensor

from saelora.core.numerics import ErrorSums, wide
from saelora.core.spread import FIGURES, Spread
from saelora.evals.drift.result import LatentChange
from saelora.evals.estimate import Estimate
from saelora.evals.intervals import UNDEFINED, ratio
from saelora.evals.variant import Variant

BLOCKS = 100  # groups of rows that are drawn anew for the rates' correlation: rows by themselves are too many counts
DRAWS = 400
_LATENTS_AT_ONCE = 8192
Seen = tuple[Tensor, Tensor, Tensor]  # an SAE's input [batch, seq, d], latents [batch, seq, d_sae], reconstruction


class Firing:
    """One SAE under the base and under another model, which is called the adapted one."""

    def __init__(self, n_rows: int):
        self.n_rows = n_rows
        self.identical, self.max_abs_difference = True, 0.0
        self.n_R, self.jaccard_R = np.zeros(n_rows), np.zeros(n_rows)
        self.active = {Variant.BASE: 0.0, Variant.ADAPTED: 0.0}
        self.error_R = {name: np.zeros(n_rows) for name in self.active}
        self.square_R = {name: np.zeros(n_rows) for name in self.active}  # sum of |x|^2
        self.x_RD: dict[Variant, list[np.ndarray]] = {name: [] for name in self.active}  # sums of x
        self.fired_KF: dict[Variant, np.ndarray] = {}
        self.spreads: dict[Variant, Spread] = {}

    def update(self, start: int, mask: Tensor, base: Seen, adapted: Seen) -> None:
        """Add rows start, start + 1, ... of a batch; ``mask`` [batch, seq] says which positions count."""
        kept_BSF = mask.unsqueeze(-1)
        latents, others = base[1] * kept_BSF, adapted[1] * kept_BSF
        self.identical &= torch.equal(latents, others)
        self.max_abs_difference = max(self.max_abs_difference, float((latents - others).abs().max()))
        rows = slice(start, start + len(mask))
        self.n_R[rows] = _numbers(mask.sum(1))
        on, other = latents != 0, others != 0
        both, either = (on & other).sum(-1), (on | other).sum(-1)
        jaccard = torch.where(either > 0, both / either.clamp(min=1), 1.0)  # two empty sets are the same set
        self.jaccard_R[rows] = _numbers((jaccard * mask).sum(1))
        for name, active, (x, _, recon) in ((Variant.BASE, on, base), (Variant.ADAPTED, other, adapted)):
            x = x.masked_fill(~kept_BSF, 0)  # not a product: an exempt position's norm may have overflowed
            self._add(name, rows, active, wide(x), wide(recon), mask)

    def _add(self, name: Variant, rows: slice, active: Tensor, x_BSD: Tensor, recon_BSD: Tensor, mask: Tensor) -> None:
        counts_BF = _numbers(active.sum(1))
        self.active[name] += float(counts_BF.sum())
        fired = self.fired_KF.setdefault(name, np.zeros((min(BLOCKS, self.n_rows), counts_BF.shape[1])))
        for row, counts_F in enumerate(counts_BF, rows.start):
            fired[row * len(fired) // self.n_rows] += counts_F
        mask = mask.to(x_BSD.device)
        error_BS = (x_BSD - recon_BSD).square().sum(-1) * mask
        spread = self.spreads.setdefault(name, Spread(self.n_rows * mask.shape[1]))
        spread.add(x_BSD[mask], error_BS[mask])
        self.error_R[name][rows] = _numbers(error_BS.sum(1))
        self.square_R[name][rows] = _numbers(x_BSD.square().sum((1, 2)))
        self.x_RD[name] += list(_numbers(x_BSD.sum(1)))

    def compute(self, reads_original: bool | None = None) -> LatentChange:
        """What the rows so far tell, and what it is of (``LatentChange.reads_original``)."""
        n = self.n_R.sum()
        return LatentChange(
            identical=self.identical,
            max_abs_difference=self.max_abs_difference,
            jaccard=ratio(self.jaccard_R.tolist(), self.n_R.tolist()),
            rate_correlation=correlation(self.fired_KF[Variant.BASE], self.fired_KF[Variant.ADAPTED]),
            l0={name: float(active / n) for name, active in self.active.items()},
            fvu={name: self._fvu(name) for name in self.active},
            reads_original=reads_original,
            **self._spread(),
        )

    def _spread(self) -> dict[str, dict[Variant, float]]:
        found = {}
        for name, spread in self.spreads.items():
            sums = (np.stack(self.x_RD[name]).sum(0), self.square_R[name].sum(), self.error_R[name].sum())
            wide_sums = (torch.as_tensor(each, dtype=torch.float64) for each in sums)
            found[name] = spread.cpu().figures(ErrorSums(spread.n, *wide_sums))
        return {figure: {name: found[name][figure] for name in found} for figure in FIGURES}

    def _fvu(self, name: Variant) -> Estimate:
        """Squared error over the variance about the mean of all rows; rows drawn anew keep that mean."""
        x_RD = np.stack(self.x_RD[name])
        mean_D = x_RD.sum(0) / self.n_R.sum()
        variance_R = self.square_R[name] - 2 * x_RD @ mean_D + self.n_R * (mean_D @ mean_D)
        return ratio(self.error_R[name].tolist(), variance_R.tolist())


def correlation(a_KF: np.ndarray, b_KF: np.ndarray, seed: int = 0) -> Estimate:
    """Pearson's correlation over latents of their counts, with its 95 % interval by bootstrap over blocks of rows.

    Undefined where all latents of a model fire equally often.
    """
    n_blocks, n_latents = a_KF.shape
    drawn = np.random.default_rng(seed).integers(n_blocks, size=(DRAWS, n_blocks))
    times_SK = np.stack([np.ones(n_blocks), *(np.bincount(each, minlength=n_blocks) for each in drawn)])
    sums = np.zeros((5, DRAWS + 1))
    for start in range(0, n_latents, _LATENTS_AT_ONCE):
        part = slice(start, start + _LATENTS_AT_ONCE)
        a_SF, b_SF = times_SK @ a_KF[:, part], times_SK @ b_KF[:, part]
        sums += np.stack([x.sum(1) for x in (a_SF, b_SF, a_SF * b_SF, a_SF**2, b_SF**2)])
    a, b, ab, aa, bb = sums / n_latents
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (ab - a * b) / np.sqrt((aa - a * a) * (bb - b * b))
    if not np.isfinite(found[0]):
        return UNDEFINED.copy()
    low, high = np.quantile(found[1:][np.isfinite(found[1:])], [0.025, 0.975])
    value, low, high = (float(np.clip(x, -1, 1)) for x in (found[0], low, high))
    return {"value": value, "low": low, "high": high}


def _numbers(x: Tensor) -> np.ndarray:
    return wide(x).cpu().numpy()
