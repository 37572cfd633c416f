"""Estimates with their uncertainty, as plain data: {"value": ..., "low": ..., "high": ...}, None for what is undefined.

Rows of text are what is drawn anew: tokens of one row are not independent of one another.
"""

import math
from collections.abc import Sequence

import numpy as np

from saelora.evals.estimate import Estimate

BOOTSTRAP_SAMPLES = 2000
UNDEFINED: Estimate = {"value": None, "low": None, "high": None}


def resampled(n_rows: int, seed: int = 0) -> np.ndarray:
    """Indices [BOOTSTRAP_SAMPLES, n_rows] of rows drawn with replacement; the same for every figure: paired."""
    return np.random.default_rng(seed).integers(n_rows, size=(BOOTSTRAP_SAMPLES, n_rows))


def ratio(numerator_R: Sequence[float], denominator_R: Sequence[float], seed: int = 0) -> Estimate:
    """Sum over rows / sum over rows, with its 95 % interval by bootstrap over rows.

    A mean over tokens is the ratio of each row's sum and its number of tokens. Undefined where every
    denominator is 0.
    """
    top, bottom = np.asarray(numerator_R, float), np.asarray(denominator_R, float)
    if not bottom.any():
        return UNDEFINED.copy()
    drawn = resampled(len(top), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = top[drawn].sum(1) / bottom[drawn].sum(1)
    low, high = np.quantile(ratios[np.isfinite(ratios)], [0.025, 0.975])
    return {"value": float(top.sum() / bottom.sum()), "low": float(low), "high": float(high)}


def ratios(numerator_KR: np.ndarray, denominator_KR: np.ndarray, seed: int = 0) -> list[Estimate]:
    """``ratio`` of K figures over the same rows, with the same draws; many figures cost little more than one."""
    top, bottom = np.asarray(numerator_KR, float), np.asarray(denominator_KR, float)
    n_rows = top.shape[1]
    times_drawn = np.stack([np.bincount(rows, minlength=n_rows) for rows in resampled(n_rows, seed)]).T.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn_KS = (top @ times_drawn) / (bottom @ times_drawn)
    found: list[Estimate] = []
    for one, its_top, its_bottom in zip(drawn_KS, top, bottom, strict=True):
        if not its_bottom.any():
            found.append(UNDEFINED.copy())
            continue
        low, high = np.quantile(one[np.isfinite(one)], [0.025, 0.975])
        found.append({"value": float(its_top.sum() / its_bottom.sum()), "low": float(low), "high": float(high)})
    return found


def t_interval(values: Sequence[float], level: float = 0.9) -> Estimate:
    """Mean of independent values with Student's t interval; the interval of fewer than two is undefined."""
    from scipy.stats import t

    x = np.asarray(values, float)
    if not len(x):
        return UNDEFINED.copy()
    mean = float(x.mean())
    if len(x) < 2:
        return {**UNDEFINED, "value": mean}
    half = float(t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return {"value": mean, "low": mean - half, "high": mean + half}
