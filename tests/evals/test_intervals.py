"""Intervals against a plain bootstrap, and what is undefined."""

import numpy as np
import pytest

from saelora.evals.intervals import UNDEFINED, ratio, ratios, resampled, t_interval


def rows(n_rows: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 50, n_rows).astype(float)
    return counts * rng.normal(3, 1, n_rows), counts


# SPEC 6.1
def test_ratio_is_of_sums_and_its_interval_a_plain_bootstrap_over_rows():
    top, bottom = rows()
    draws = sorted(sum(top[i] for i in drawn) / sum(bottom[i] for i in drawn) for drawn in resampled(len(top)).tolist())
    found = ratio(top.tolist(), bottom.tolist())
    assert found["value"] == pytest.approx(sum(top) / sum(bottom))
    assert found["low"] == pytest.approx(np.quantile(draws, 0.025))
    assert found["high"] == pytest.approx(np.quantile(draws, 0.975))
    assert found["value"] != pytest.approx(np.mean(top / bottom), rel=1e-3)  # no mean of means


def test_many_ratios_at_once_are_each_the_one_alone():
    pairs = [rows(seed=seed) for seed in range(4)]
    pairs.append((pairs[0][0], np.zeros(30)))
    some = np.where(np.arange(30) == 7, 5.0, 0.0)  # a group that one row alone has: many draws are without it
    pairs.append((2 * some, some))
    found = ratios(np.stack([top for top, _ in pairs]), np.stack([bottom for _, bottom in pairs]))
    for one, (top, bottom) in zip(found[:4], pairs, strict=False):
        assert one == pytest.approx(ratio(top.tolist(), bottom.tolist()), rel=1e-9)
    assert found[4] == UNDEFINED
    assert found[5] == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_a_ratio_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        top, bottom = rows(60, seed)
        found = ratio(top.tolist(), bottom.tolist())
        hits += found["low"] <= 3 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_t_interval_is_students():
    found = t_interval([1.0, 2.0, 4.0, 5.0])
    half = 2.3533634 * np.std([1, 2, 4, 5], ddof=1) / 2  # t with 3 degrees of freedom, 95th percentile
    assert (found["value"], found["low"], found["high"]) == pytest.approx((3, 3 - half, 3 + half))


def test_too_few_values_have_no_interval():
    assert t_interval([]) == UNDEFINED
    assert t_interval([2.0]) == {"value": 2.0, "low": None, "high": None}
