"""A comparison's tables, words and figures, from runs made up by hand whose right answers are worked out here."""

import csv
import math
from pathlib import Path
from typing import Any, TypeVar

import pytest

from compared_runs import closing, method, race, sae, start_at
from saelora.reporting import compare
from saelora.reporting.comparison.curves import cost_at, curve_of
from saelora.reporting.comparison.run import ComparisonRun

T = TypeVar("T")


def only(rows: list[T], **wanted: Any) -> T:
    (row,) = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return row


def ratios(runs: list[ComparisonRun], rival: str, cost: str = "seconds") -> list[tuple[float, float | None]]:
    """(loss, median speed-up) along the end-to-end run."""
    rows = compare.speedups(runs)
    return [(r.loss, r.median) for r in rows if r.rival == rival and r.cost == cost and not r.final]


def test_speedup_interpolates_and_takes_the_cheapest_branch_with_its_start_counted() -> None:
    # 4.0: both branches begin below it, at 5 s. 3.6: 5 + 5 s against 10 + 1. 3.4: 5 + 5 + 2/3 of 5 s, or never.
    assert ratios(race(), "local + lora") == [(4.0, 2.0), (3.6, 2.0), (3.4, pytest.approx(3.0))]


def test_speedup_counts_tokens_and_operations_as_it_counts_seconds() -> None:
    def tenfold(run: ComparisonRun) -> ComparisonRun:
        curve = [point.model_copy(update={"n_tokens": 10 * point.n_tokens}) for point in run.curve]
        return run.model_copy(update={"curve": curve})

    runs = [*race()[:2], *map(tenfold, race()[2:])]  # methods whose tokens are ten times as many
    # 500 of the start, 5,000 + 2/3 of 5,000 of its own
    assert ratios(runs, "local + lora", "n_tokens")[2][1] == pytest.approx(4000 / (500 + 5000 + 5000 * 2 / 3))
    assert ratios(runs, "local + lora", "model_flops")[2][1] == pytest.approx(3.0)


def test_a_rival_that_never_reaches_a_loss_has_no_speedup_there() -> None:
    assert ratios(race(), "local") == [(4.0, 2.0), (3.6, None), (3.4, None)]
    row = only(compare.speedups(race()), rival="local", cost="seconds", final=True)
    assert (row.median, row.least, row.most, row.n_reached, row.per_seed) == (
        None,
        None,
        None,
        0,
        {0: None},
    )
    assert "not reached" in compare.markdown(race())


def test_speedup_is_taken_seed_by_seed() -> None:
    runs = [*race(0), *race(1, slow=2.0), *race(2, slow=3.0)]
    row = only(compare.speedups(runs), rival="local + lora", cost="seconds", final=True)
    assert row.per_seed == {seed: pytest.approx(40 / (5 + 25 / 3 * (1 + seed))) for seed in (0, 1, 2)}
    assert (row.least, row.median, row.most) == tuple(sorted(row.per_seed.values()))


def test_a_curve_that_goes_up_again_counts_by_the_lowest_it_had_reached() -> None:
    e2e = sae("e2e", "e2e", [(10, 3.5), (20, 3.4), (30, 3.6)])
    row = only(compare.speedups([e2e, *race()[1:]]), rival="local + lora", cost="seconds", final=True)
    assert row.loss == 3.4
    assert row.median == pytest.approx(20 / (5 + 25 / 3))


def test_cost_at_a_loss_between_two_points_and_outside_of_them() -> None:
    points = curve_of(sae("a", "local", [(10, 4.0), (20, 3.0), (30, 3.5), (40, 2.0)]))
    assert cost_at(points, 3.25, "total_seconds") == 17.5
    assert cost_at(points, 4.5, "total_seconds") == 10
    assert cost_at(points, 2.75, "total_seconds") == 35
    assert cost_at(points, 1.0, "total_seconds") is None


def test_the_one_number_is_of_the_best_rival_that_gets_there_with_every_seed() -> None:
    sooner = method("sooner", [(0, 3.7), (1, 3.2)], start=start_at(5, 0.5))  # with one seed of two
    costs = compare.speedup_to_e2e([*race(0), *race(1), sooner])
    best = costs["seconds"]
    assert (best.rival, best.n_reached) == ("local + lora", 2)
    assert best.median == pytest.approx(3.0)
    assert set(costs) == {"seconds", "n_tokens", "model_flops"}


def test_an_sae_from_elsewhere_has_no_cost_from_scratch_and_is_no_rival() -> None:
    runs = [*race()[:2], closing("lora", 0.9, 5, start={"ref": "release/layer"})]
    assert {row.rival for row in compare.speedups(runs)} == {"local"}
    rows = [row for row in compare.tidy(runs) if row["name"] == "lora"]
    assert [(row["start"], row["seconds"], row["total_seconds"]) for row in rows] == [
        ("release/layer", 0, None),
        ("release/layer", 5, None),
    ]


def test_tidy_adds_the_starts_cost_and_measures_the_gap_from_the_start() -> None:
    rows = [row for row in compare.tidy(race()) if row["name"] == "lora" and row["start_share"] == 0.5]
    assert [(row["seconds"], row["total_seconds"], row["total_n_tokens"]) for row in rows] == [
        (0, 5, 500),
        (5, 10, 1000),
        (10, 15, 1500),
    ]
    assert [row["gap_closed"] for row in rows] == [0, pytest.approx(0.25), pytest.approx(0.625)]
    assert [row["final"] for row in rows] == [False, False, True]
    assert all(row["gap_closed"] is None for row in compare.tidy(race()) if row["kind"] == "sae")


def test_csv_has_a_line_for_each_point(tmp_path: Path) -> None:
    compare.write_csv(race(), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 2 + 3 + 3
    assert rows[0]["name"] == "e2e"
    assert float(rows[0]["total_seconds"]) == 10


def test_interval_over_seeds_is_students() -> None:
    runs = [closing("lora", gap, 10, seed=seed) for seed, gap in enumerate((0.30, 0.40, 0.50))]
    (row,) = compare.equal_tokens(runs)
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom; standard deviation 0.1
    assert (row.value, row.low, row.high) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    assert row.per_seed == {0: pytest.approx(0.3), 1: pytest.approx(0.4), 2: pytest.approx(0.5)}


def test_a_single_seed_has_its_own_interval_over_texts_and_no_difference() -> None:
    lora, linear = compare.equal_tokens([closing("lora", 0.4, 10), closing("linear", 0.3, 5, method="linear")])
    assert (lora.low, lora.high) == pytest.approx((0.35, 0.47))
    assert lora.difference is None
    assert linear.difference is None


def paired() -> list[ComparisonRun]:
    """Two methods that differ by about 0.1, far less than their seeds do."""
    seeds = {0: (0.2, 0.30), 1: (0.4, 0.51), 2: (0.6, 0.69)}
    runs = [closing("lora", lora, 10, seed=seed) for seed, (lora, _) in seeds.items()]
    return runs + [closing("both", both, 10, seed=seed, method="lora+sae") for seed, (_, both) in seeds.items()]


def test_differences_are_paired_over_seeds() -> None:
    row = only(compare.equal_tokens(paired()), name="both")
    half = 4.302653 * 0.01 / math.sqrt(3)
    found = row.difference
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.1, 0.1 - half, 0.1 + half))
    assert row.low < 0.4  # unpaired, the two could not be told apart
    assert "both (+7.5 to +12.5 points) closed more than lora" in " ".join(compare.words(paired()))


def test_kl_can_tell_apart_what_the_gap_cannot() -> None:
    runs, kl_of = [], {0: (0.18, 0.17), 1: (0.19, 0.181), 2: (0.2, 0.189)}
    for seed, gaps in {0: (0.2, 0.3), 1: (0.4, 0.2), 2: (0.3, 0.5)}.items():
        for name, gap, kl in zip(("lora", "both"), gaps, kl_of[seed], strict=True):
            runs.append(closing(name, gap, 10, seed=seed, final={"kl": kl}))
    row = only(compare.equal_tokens(runs), name="both")
    assert row.kl == pytest.approx(0.18)
    half = 4.302653 * 0.001 / math.sqrt(3)  # differences -0.010, -0.009, -0.011
    found = row.kl_difference
    assert (found["value"], found["low"], found["high"]) == pytest.approx((-0.01, -0.01 - half, -0.01 + half))
    told = " ".join(compare.words(runs))
    assert "cannot be told apart from lora. By KL" in told
    assert "both (-0.0125 to -0.0075 nats) ended below lora." in told


def test_methods_are_compared_at_budgets_and_starts_that_they_share() -> None:
    runs = [
        closing("lora", 0.2, 5, budget=500),
        closing("lora", 0.4, 10, budget=1000),
        closing("x", 0.3, 8, budget=1000),
    ]
    runs.append(closing("lora", 0.6, 10, budget=1000, start=start_at(5, 0.5)))
    found = [(row.start, row.budget, row.name) for row in compare.equal_tokens(runs)]
    assert found == [
        ("local@1 (1k tokens)", 1000, "lora"),
        ("local@1 (1k tokens)", 1000, "x"),
        ("local@0.5 (500 tokens)", 1000, "lora"),
    ]
    assert [row.name for row in compare.main_group(compare.equal_tokens(runs))] == ["lora", "x"]


def test_equal_time_interpolates_final_figures_over_log_seconds() -> None:
    runs = [closing("lora", 0.4, 20, budget=1000)]
    runs += [closing("x", gap, s, budget=b, method="linear") for gap, s, b in ((0.1, 10, 500), (0.5, 40, 1000))]
    row = only(compare.equal_seconds(runs), name="x")
    assert (row.how, row.limit, row.seconds) == ("interpolated", 20, 20)
    assert row.value == pytest.approx(0.3)  # 20 s lie halfway between 10 and 40


def test_points_along_a_run_do_not_count_at_equal_time() -> None:
    halfway = method("x", [(0, 4.0), (20, 3.2), (40, 3.5)], budget=1000, method="linear")
    early = closing("x", 0.1, 10, budget=500, method="linear")
    row = only(compare.equal_seconds([closing("lora", 0.4, 20), early, halfway]), name="x")
    assert row.value == pytest.approx(0.3)


@pytest.mark.parametrize(("seconds", "how"), [(10, "less time"), (40, "more time"), (20.2, "measured")])
def test_a_method_of_one_budget_stands_with_the_time_it_took(seconds: float, how: str) -> None:
    runs = [closing("lora", 0.4, 20), closing("x", 0.3, seconds, method="linear")]
    row = only(compare.equal_seconds(runs), name="x")
    assert (row.how, row.seconds, row.value) == (how, seconds, pytest.approx(0.3))


def test_a_method_whose_budgets_all_took_longer_stands_with_the_nearest() -> None:
    runs = [closing("lora", 0.4, 20), closing("x", 0.3, 30, method="linear")]
    runs.append(closing("x", 0.5, 60, budget=2000, method="linear"))
    row = only(compare.equal_seconds(runs), name="x")
    assert (row.how, row.seconds) == ("more time", 30)


def test_there_is_no_difference_at_equal_time_where_the_times_are_not_equal() -> None:
    slow = [
        run.model_copy(update={"curve": [p.model_copy(update={"seconds": 2 * p.seconds}) for p in run.curve]})
        for run in paired()[3:]
    ]
    assert only(compare.equal_seconds(paired()), name="both").difference["value"] == pytest.approx(0.1)
    assert only(compare.equal_seconds([*paired()[:3], *slow]), name="both").difference is None


def test_what_is_left_behind_is_a_mean_over_seeds_at_the_largest_budget() -> None:
    figures = [{"fvu": 0.1, "jaccard": 0.8, "ce_clean": 3.1}, {"fvu": 0.2, "jaccard": 0.6, "ce_clean": 3.2}]
    runs = [closing("lora", 0.4, 10, seed=seed, final=final) for seed, final in enumerate(figures)]
    small = closing("lora", 0.1, 1, budget=100, final={"fvu": 9.0})
    e2e, lora = compare.left_behind([race()[0], small, *runs])
    figures = [lora.figures[name] for name in ("fvu", "jaccard", "clean_cost")]
    assert [*figures, lora.n_seeds] == pytest.approx([0.15, 0.7, 0.15, 2])
    assert (e2e.name, e2e.figures["jaccard"], e2e.figures["clean_cost"]) == ("e2e", None, None)


def test_words_say_who_is_sooner_and_by_how_much() -> None:
    told = " ".join(compare.words([*race(0), *race(1, slow=2.0)]))
    assert (
        "local + lora reaches the lowest loss of e2e, 3.400 nats per token, with 2.4 times less training time" in told
    )
    assert "The speed-up in time lies between 1.85 and 3.00 over 2 seeds" in told


def test_words_say_what_is_dearer_and_what_nobody_reaches() -> None:
    dear = [sae("e2e", "e2e", [(1, 3.6), (2, 3.5)]), *race()[1:]]
    assert "times more training time" in " ".join(compare.words(dear))
    low = [sae("e2e", "e2e", [(1, 3.6), (2, 3.1)]), *race()[1:]]
    assert "No other way that was tried reaches the lowest loss of e2e, 3.100" in " ".join(compare.words(low))


def test_words_do_not_tell_methods_apart_by_one_seed_or_by_an_interval_that_holds_zero() -> None:
    one = compare.words([closing("lora", 0.4, 10), closing("x", 0.9, 10, method="linear")])
    assert "With one seed the methods cannot be told apart." in one
    gaps = ((0.2, 0.1), (0.4, 0.6))
    runs = [closing("lora", a, 10, seed=seed) for seed, (a, _) in enumerate(gaps)]
    runs += [closing("x", b, 10, seed=seed, method="linear") for seed, (_, b) in enumerate(gaps)]
    assert "cannot be told apart from lora" in " ".join(compare.words(runs))


def diverged() -> list[ComparisonRun]:
    broken = method("x", [(0, 4.0), (5, None)], method="linear")
    return [broken, sae("e2e", "e2e", [(10, None)])]


SETS = {
    "none": [],
    "no methods": race()[:2],
    "e2e alone": race()[:1],
    "no e2e": race()[1:],
    "methods alone": [closing("lora", 0.4, 10, start={"ref": "release/layer"})],
    "one seed": race(),
    "diverged alone": diverged(),
    "diverged among others": [*race(), *diverged()],
    "seeds that differ": [*race(0), race(1)[0], *race(2)[1:3]],
    "no curve yet": [run.model_copy(update={"curve": []}) for run in (race()[0], race()[2])],
    "no gap": [method("lora", [(0, 3.0), (5, 3.0)], final={"gap_closed": None})],
}


# one with nothing to show is left out
FIGURES = {"none": [], "e2e alone": ["race", "left_behind"], "one seed": ["race", "speedups", "equal", "left_behind"]}


@pytest.mark.parametrize("case", SETS)
def test_any_set_of_runs_can_be_shown(case: str, tmp_path: Path) -> None:
    runs = SETS[case]
    compare.write_csv(runs, tmp_path / "results.csv")
    assert compare.markdown(runs)
    assert compare.text_table(runs)
    assert all(isinstance(sentence, str) for sentence in compare.words(runs))
    drawn = compare.figures(runs, tmp_path)
    assert all(path.exists() for path in drawn)
    if case in FIGURES:
        assert [path.stem for path in drawn if path.suffix == ".png"] == FIGURES[case]


def test_diverged_runs_are_named_and_left_out() -> None:
    told = compare.words([*race(), *diverged()])
    assert told[-1] == "Diverged, and left out of all figures: x (seed 0) and e2e (seed 0)."
    assert [row.name for row in compare.equal_tokens([*race(), *diverged()])] == ["lora", "lora"]
