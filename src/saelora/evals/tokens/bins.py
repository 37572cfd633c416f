"""Predictions grouped by what they have in common, and the cross entropies of each group.

Shapes: R rows, P predictions of a row, V vocabulary.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from saelora.evals.intervals import UNDEFINED, ratios
from saelora.evals.tokens.result import Group
from saelora.evals.variant import SIDE_BY_SIDE

LEAST_ROWS = 5  # that a bin's predictions are from: drawing fewer anew says nothing about how they vary
RATES = (1, 10, 100, 1_000, 10_000)  # of a token per million


@dataclass(frozen=True)
class Bin:
    """Predictions with low <= x < high (the last bin includes its end; high None: open)."""

    low: float
    high: float | None
    label: str
    member_RP: np.ndarray  # bool [R, P]


def position_bins(shape: tuple[int, ...]) -> list[Bin]:
    """By the number of tokens before the predicted one in its row, BOS included; each bin twice as wide as the last."""
    before_RP = np.broadcast_to(np.arange(1, shape[1] + 1), shape)
    found, low = [], 1
    while low <= shape[1]:
        high = min(2 * low, shape[1] + 1)
        label = str(low) if high == low + 1 else f"{low}–{high - 1}"
        found.append(Bin(low, high, label, (before_RP >= low) & (before_RP < high)))
        low = high
    return found


def frequency_bins(predicted_RP: np.ndarray, count_V: np.ndarray) -> list[Bin]:
    """By how often the predicted token occurs per million tokens of training text."""
    n = int(count_V.sum())
    counts_RP = count_V[predicted_RP]
    per_million_RP = counts_RP * (1e6 / n)
    found = [Bin(0.0, 0.0, "never seen", counts_RP == 0)]
    edges = (0.0, *map(float, RATES), None)
    for low, high in pairwise(edges):
        assert low is not None
        member_RP = (counts_RP > 0) & (per_million_RP >= low)
        if high is None:
            label = f"{low:,.0f} or more"
        else:
            member_RP &= per_million_RP < high
            label = f"under {high:,.0f}" if low == 0 else f"{low:,.0f}–{high:,.0f}"
        found.append(Bin(low, high, label, member_RP))
    return found


def recon_error_bins(error_RP: np.ndarray, counted_RP: np.ndarray, n_bins: int = 10) -> list[Bin]:
    """Tenths of the counted predictions, by the SAE's relative squared error at the predicting position."""
    edges = np.unique(np.quantile(error_RP[counted_RP], np.linspace(0, 1, n_bins + 1)))
    which_RP = np.searchsorted(edges[1:-1], np.where(counted_RP, error_RP, edges[0]), side="right")
    return [
        Bin(float(low), float(high), f"{low:.3g}–{high:.3g}", which_RP == i)
        for i, (low, high) in enumerate(pairwise(edges))
    ] or [Bin(float(edges[0]), float(edges[0]), f"{edges[0]:.3g}", counted_RP)]


def table(bins: list[Bin], counted_RP: np.ndarray, values: dict[str, np.ndarray]) -> list[Group]:
    """Cross entropies, change and gap closed of each bin that holds a counted prediction.

    gap_closed is undefined where the bin's gap cannot be told from zero (its 95 % interval reaches 0): a share of
    nothing says nothing. So are all intervals, and gap_closed, where fewer than LEAST_ROWS rows are in the bin.

    Args:
        values: ce_base, ce_sae, ce_adapted [R, P], nats.
    """
    members = [(each, counted_RP & each.member_RP) for each in bins]
    members = [(each, member_RP) for each, member_RP in members if member_RP.any()]
    if not members:
        return []
    n, tops, bottoms = 6, list[np.ndarray](), list[np.ndarray]()
    for _, member_RP in members:
        base, sae, adapted = ((values[variant.ce] * member_RP).sum(1) for variant in SIDE_BY_SIDE)
        count = member_RP.sum(1)
        tops += [base, sae, adapted, adapted - sae, sae - base, sae - adapted]
        bottoms += [count, count, count, count, count, sae - base]
    found = ratios(np.stack(tops), np.stack(bottoms))
    out = []
    for i, (each, member_RP) in enumerate(members):
        estimates = found[i * n : (i + 1) * n]
        if member_RP.any(1).sum() < LEAST_ROWS:
            estimates = [{"value": estimate["value"], "low": None, "high": None} for estimate in estimates]
        base_e, sae_e, adapted_e, change, gap, closed = estimates
        known = closed if (gap["low"] or 0) > 0 else UNDEFINED.copy()
        n_members = int(member_RP.sum())
        out.append(Group(each.low, each.high, each.label, n_members, base_e, sae_e, adapted_e, change, known))
    return out
