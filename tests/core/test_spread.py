"""Figures beside FVU, against plain ones over all tokens at once; what one huge token does to each."""

import math

import pytest
import torch

from saelora.core.numerics import ErrorSums
from saelora.core.spread import FIGURES, Spread, n_largest
from spread_reference import plain_figures

D = 7


def tokens(n, huge=()):
    """Activations with a mean far from 0, and reconstructions; ``huge`` ones are 100 times as large."""
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, D, generator=draw, dtype=torch.float64) + torch.arange(D) / 2
    x[list(huge)] *= 100
    recon = x + 0.3 * torch.randn(n, D, generator=draw, dtype=torch.float64)
    return x, recon


def of_parts(x, recon, sizes, n_most=None):
    spread = Spread(n_most or len(x))
    for part, its_recon in zip(x.split(sizes), recon.split(sizes), strict=True):
        spread.add(part, (part - its_recon).square().sum(-1))
    return spread


def figures(spread, x, recon):
    return spread.figures(ErrorSums(len(x), x.sum(0), x.square().sum(), (x - recon).square().sum()))


def fvu(x, recon):
    return float((x - recon).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize(("n", "k"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (2500, 3)])
def test_a_tenth_of_a_percent_is_rounded_up(n, k):
    assert n_largest(n) == k


@pytest.mark.parametrize("n", [3, 1000, 2500])
@pytest.mark.parametrize("huge", [(), (1,), (0, 1, 2)])
# SPEC 5.2
def test_figures_equal_plain_ones(n, huge):
    x, recon = tokens(n, huge)
    assert figures(of_parts(x, recon, n), x, recon) == pytest.approx(plain_figures(x, recon), rel=1e-9)


@pytest.mark.parametrize("sizes", [1, 7, 1024])
def test_batches_and_a_bound_above_the_number_of_tokens_change_nothing(sizes):
    x, recon = tokens(2500, (3, 2000))
    whole = figures(of_parts(x, recon, 2500), x, recon)
    assert figures(of_parts(x, recon, sizes, 5000), x, recon) == pytest.approx(whole, rel=1e-12)


def test_parts_of_several_processes_make_the_whole():
    x, recon = tokens(2500, (3, 2000))
    parts = [of_parts(x[i::3], recon[i::3], 100, 2500).cpu() for i in range(3)]
    whole = figures(of_parts(x, recon, 2500), x, recon)
    assert figures(Spread.together(parts), x, recon) == pytest.approx(whole, rel=1e-12)
    assert figures(Spread.together(reversed([*parts, Spread(2500)])), x, recon) == pytest.approx(whole, rel=1e-12)


# SPEC 5.2
def test_one_huge_token_moves_fvu_and_not_what_stands_beside_it():
    x, recon = tokens(1000)
    before, calm = fvu(x, recon), figures(of_parts(x, recon, 1000), x, recon)
    shift = recon[5] - x[5]
    x[5] = 1e4
    recon[5] = x[5] + shift
    after, found = fvu(x, recon), figures(of_parts(x, recon, 1000), x, recon)
    assert after < 0.1 * before
    assert found["top_variance"] > 0.99
    for name in ("relative_error", "relative_error_q10", "relative_error_q90", "fvu_rest"):
        assert found[name] == pytest.approx(calm[name], rel=0.02), name


def test_a_token_that_is_not_a_number_is_not_left_out():
    x, recon = tokens(100)
    recon[40] = math.nan
    found = figures(of_parts(x, recon, 100), x, recon)
    assert all(math.isnan(found[name]) for name in FIGURES if name != "top_variance")


def test_a_token_of_norm_0_leaves_the_others_their_figures():
    x, recon = tokens(101)
    x[7], recon[7] = 0.0, 0.0
    assert 0 < figures(of_parts(x, recon, 101), x, recon)["relative_error"] < 1
