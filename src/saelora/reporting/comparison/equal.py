"""Final figures of a comparison's methods at equal tokens and at equal training time."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saelora.evals.estimate import Estimate
from saelora.evals.intervals import t_interval
from saelora.identity import groups
from saelora.reporting.comparison.curves import finite, label_of_start
from saelora.reporting.comparison.run import ComparisonRun

EQUAL = ("measured", "interpolated")  # how a figure came to stand for the time compared at
SAME_TIME = 0.02  # seconds that differ by less than this share are equal
Finals = dict[int, ComparisonRun]  # seed -> run
Arms = dict[str, dict[int, Finals]]  # name -> budget -> seed -> run


@dataclass(frozen=True)
class Summary:
    """A share of the gap: mean over seeds with Student's t 95 % interval; of a single seed its own, over texts."""

    per_seed: dict[int, float]
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Compared(Summary):
    """What a method closes, beside others from the same start.

    Args:
        seconds: of its own training, median.
        difference: paired with the reference method over seeds; None for fewer than two seeds.
        kl: mean over seeds, nats per token; kl_difference as difference; both None at equal time.
        limit, how: at equal time, the seconds compared at, and how the figure came to stand for them.
    """

    start: str
    budget: int
    name: str
    seconds: float
    difference: Estimate | None = None
    kl: float | None = None
    kl_difference: Estimate | None = None
    limit: float | None = None
    how: str | None = None


def by_start(runs: Sequence[ComparisonRun]) -> dict[str, Arms]:
    """Methods whose final share of the gap is a number, under the SAE that they began from, in order of appearance.

    Those that were measured on other rows, or in other ways that do not compare, stand apart.
    """
    found: dict[str, Arms] = {}
    letters = groups([run.about for run in runs])
    for run, letter in zip(runs, letters, strict=True):
        if run.kind == "method" and run.curve and finite(run.final.gap_closed):
            apart = f", text {letter}" if len(set(letters)) > 1 else ""
            arms = found.setdefault(f"{label_of_start(run) or ''}{apart}", {})
            arms.setdefault(run.name, {}).setdefault(run.budget, {})[run.seed] = run
    return found


def reference(arms: Arms) -> str:
    """The method that others are set against: LoRA if it is there, else the first."""
    lora = [name for name, budgets in arms.items() if any(_one(seeds).method == "lora" for seeds in budgets.values())]
    return lora[0] if lora else next(iter(arms))


def common_budgets(arms: Arms) -> list[int]:
    """Budgets that two methods or more share; all of them where no two share any."""
    all_budgets = sorted({budget for budgets in arms.values() for budget in budgets})
    shared = [budget for budget in all_budgets if sum(budget in budgets for budgets in arms.values()) > 1]
    return shared or all_budgets


def equal_tokens(runs: Sequence[ComparisonRun]) -> list[Compared]:
    """The share of the gap that each method closes at each budget that it shares with another one."""
    rows = []
    for start, arms in by_start(runs).items():
        against = reference(arms)
        for budget in common_budgets(arms):
            firsts = arms[against].get(budget, {})
            for name, budgets in arms.items():
                if finals := budgets.get(budget):
                    gaps, kls, own = _gaps(finals), _kls(finals), name == against
                    row = Compared(
                        **vars(_summary(gaps, finals)),
                        start=start,
                        budget=budget,
                        name=name,
                        seconds=_seconds(finals),
                        difference=None if own else paired(gaps, _gaps(firsts)),
                        kl=statistics.fmean(kls.values()) if kls else None,
                        kl_difference=None if own else paired(kls, _kls(firsts)),
                    )
                    rows.append(row)
    return rows


def equal_seconds(runs: Sequence[ComparisonRun]) -> list[Compared]:
    """The share of the gap that each method closes in the training time of the reference method.

    Each budget that ``equal_tokens`` compares gives one time, the median over the reference's seeds. A method that was
    run with budgets on both sides of it is interpolated between their final figures, linearly over the logarithm of
    seconds; points along a run do not count, since its learning rate has not decayed there. Any other method stands
    with its final figure nearest in time, and with how long that took.

    ``how`` is measured, interpolated, less time or more time; of the last two there is no difference.
    """
    rows = []
    for start, arms in by_start(runs).items():
        against = reference(arms)
        for budget in common_budgets(arms):
            if budget not in arms[against]:
                continue
            limit = _seconds(arms[against][budget])
            first = _gaps(arms[against][budget])
            for name, budgets in arms.items():
                seconds, how, closed = _in_time(budgets if name != against else {budget: budgets[budget]}, limit)
                as_long = how in EQUAL and name != against
                difference = paired(closed.per_seed, first) if as_long else None
                row = Compared(
                    **vars(closed),
                    start=start,
                    budget=budget,
                    name=name,
                    seconds=seconds,
                    difference=difference,
                    limit=limit,
                    how=how,
                )
                rows.append(row)
    return rows


def _in_time(budgets: Mapping[int, Finals], limit: float) -> tuple[float, str, Summary]:
    """Seconds, how, and what was closed."""
    nearest = min(budgets.values(), key=lambda finals: abs(math.log(max(_seconds(finals), 1e-9) / max(limit, 1e-9))))
    seconds = _seconds(nearest)
    gaps = _gaps(nearest)
    if len(budgets) == 1 or abs(seconds / max(limit, 1e-9) - 1) <= SAME_TIME:
        ratio = seconds / max(limit, 1e-9)
        how = "measured" if abs(ratio - 1) <= SAME_TIME else "less time" if ratio < 1 else "more time"
        return seconds, how, _summary(gaps, nearest)
    between = {}
    for seed in nearest:
        points = sorted(
            (finals[seed].curve[-1].seconds, _gap(finals[seed])) for finals in budgets.values() if seed in finals
        )
        value = _interpolated(points, limit)
        if value is not None:
            between[seed] = value
    if len(between) == len(nearest):
        return limit, "interpolated", _summary(between, {})
    return seconds, "less time" if seconds < limit else "more time", _summary(gaps, nearest)


def _interpolated(points: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """A value between two neighbours in log seconds; None outside of all points, which are ascending."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if 0 < x0 <= seconds <= x1 and x0 < x1:
            return y0 + (y1 - y0) * math.log(seconds / x0) / math.log(x1 / x0)
    return None


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """Mean difference over the seeds that both have, with Student's t 95 % interval; None for fewer than two."""
    both = [values[seed] - others[seed] for seed in values if seed in others]
    return t_interval(both, 0.95) if len(both) > 1 else None


def main_group(rows: Sequence[Compared]) -> list[Compared]:
    """The rows of the start and budget at which most methods are compared; of equals the last."""
    groups: dict[tuple[str, int], list[Compared]] = {}
    for row in rows:
        groups.setdefault((row.start, row.budget), []).append(row)
    return max(reversed(groups.values()), key=len, default=[])


def _summary(values: Mapping[int, float], runs: Finals) -> Summary:
    if len(values) == 1 and runs:
        ((seed, value),) = values.items()
        low, high = runs[seed].final.ci95.get("gap_closed") or (None, None)
        return Summary(dict(values), value, low, high)
    found = t_interval(list(values.values()), 0.95)
    assert found["value"] is not None
    return Summary(dict(values), found["value"], found["low"], found["high"])


def _gaps(finals: Finals) -> dict[int, float]:
    return {seed: _gap(run) for seed, run in finals.items()}


def _kls(finals: Finals) -> dict[int, float]:
    return {seed: run.final.kl for seed, run in finals.items() if run.final.kl is not None and finite(run.final.kl)}


def _gap(run: ComparisonRun) -> float:
    assert run.final.gap_closed is not None
    return run.final.gap_closed


def _seconds(finals: Finals) -> float:
    return float(statistics.median(run.curve[-1].seconds for run in finals.values()))


def _one(finals: Finals) -> ComparisonRun:
    return next(iter(finals.values()))
