"""Learning curves of a comparison's runs -> what each way cost from scratch, and how much sooner it got to a loss."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from saelora.reporting.comparison.run import ComparisonRun
from saelora.reporting.format import count

COSTS = ("seconds", "n_tokens", "model_flops")  # columns of a curve's points; training alone, SAE training included


def label_of_start(run: ComparisonRun) -> str | None:
    """Where a method began, as a reader would say it; None for an SAE from scratch."""
    start = run.start
    if start is None:
        return None
    if start.share is None or start.n_tokens is None:
        return start.ref
    return f"{start.name}@{start.share:g} ({count(start.n_tokens)} tokens)"


def finite(value: Any) -> bool:
    """Whether a figure is a number: that of a run which diverged is not."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Reached:
    """A point of a curve whose cross entropy is a number; ``total_*``: its costs with its start's added.

    A start whose cost nobody counted (an SAE from elsewhere) leaves the totals None.
    """

    share: float
    n_tokens: float
    seconds: float
    model_flops: float
    ce: float
    kl: float | None
    total_n_tokens: float | None
    total_seconds: float | None
    total_model_flops: float | None


@dataclass(frozen=True)
class Ratios:
    """How many times cheaper a rival got to a loss, over seeds.

    Args:
        share: of the target's run.  final: whether it is the lowest loss of all.
        loss: median over seeds.  per_seed: None where the rival never reaches it.
        median, least, most: of the ``n_reached`` seeds that reach it; None if none does.
    """

    share: float
    final: bool
    loss: float
    per_seed: dict[int, float | None]
    median: float | None
    least: float | None
    most: float | None
    n_reached: int


@dataclass(frozen=True)
class Speedup(Ratios):
    """The same with whose they are: ``cost`` is one of COSTS."""

    target: str
    budget: int
    rival: str
    cost: str


def curve_of(run: ComparisonRun) -> list[Reached]:
    """A run's points whose cross entropy is a number."""
    found = []
    for point in run.curve:
        if point.ce is not None and finite(point.ce):
            own = (point.n_tokens, point.seconds, point.model_flops)
            start = run.start
            before = (0, 0, 0) if start is None else (start.n_tokens, start.seconds, start.model_flops)
            totals = (None if b is None else b + o for b, o in zip(before, own, strict=True))
            found.append(Reached(point.share, *own, point.ce, point.kl, *totals))
    return found


def cost_at(curve: Sequence[Reached], loss: float, cost: str) -> float | None:
    """The least cost at which a curve is at or below a loss, by linear interpolation between its points; None: never.

    A curve that begins at or below the loss has it at its first point's cost: what it cost before is not known.

    Args:
        cost: a field of ``Reached``.
    """
    before: Reached | None = None
    for point in curve:
        if point.ce <= loss:
            if before is None:
                return float(getattr(point, cost))
            way = (before.ce - loss) / (before.ce - point.ce)
            return float(getattr(before, cost) + way * (getattr(point, cost) - getattr(before, cost)))
        before = point
    return None


def levels(curve: Sequence[Reached]) -> list[Reached]:
    """The points at which a curve is lower than ever before, less a point that cost nothing."""
    found, lowest = [], float("inf")
    for point in curve:
        if point.ce < lowest:
            lowest = point.ce
            if point.total_seconds is not None and point.total_seconds > 0:
                found.append(point)
    return found


def speedups(runs: Sequence[ComparisonRun]) -> list[Speedup]:
    """How much cheaper each other way reaches each loss of an SAE that was trained end to end.

    For every SAE entry trained end to end and each loss of its curve: cost of that entry divided by the least cost of a
    rival, seed by seed. Rivals are the other SAE entries alone, and each SAE with a method on it: the cheapest of its
    branches, its SAE's training counted.
    """
    found = []
    targets = dict.fromkeys((r.name, r.budget) for r in runs if r.kind == "sae" and r.method != "local")
    for name, budget in targets:
        mine = [run for run in runs if (run.name, run.budget) == (name, budget)]
        rivals = dict.fromkeys(rival_name(run) for run in runs if run.name != name)
        for rival in filter(None, rivals):
            others = [run for run in runs if rival_name(run) == rival]
            for cost in COSTS:
                found += [
                    Speedup(**vars(ratios), target=name, budget=budget, rival=rival, cost=cost)
                    for ratios in _ratios(mine, others, f"total_{cost}")
                ]
    return found


def rival_name(run: ComparisonRun) -> str | None:
    """local, or local + lora; None for a method whose start's cost nobody counted."""
    if run.kind == "sae":
        return run.name
    return f"{run.start.name} + {run.name}" if run.start is not None and run.start.name is not None else None


def _ratios(mine: Iterable[ComparisonRun], others: Sequence[ComparisonRun], cost: str) -> list[Ratios]:
    by_share: dict[tuple[bool, float], dict[int, tuple[float, float | None]]] = {}
    for run in mine:
        curve = curve_of(run)
        rivals = [curve_of(other) for other in others if other.seed == run.seed]
        if not rivals:
            continue
        reached = levels(curve)
        for point in reached:
            at = [found for rival in rivals if (found := cost_at(rival, point.ce, cost)) is not None]
            own = cost_at(curve, point.ce, cost)
            ratio = own / min(at) if at and own and min(at) > 0 else None
            by_share.setdefault((False, point.share), {})[run.seed] = (point.ce, ratio)
            if point is reached[-1]:
                by_share.setdefault((True, 1.0), {})[run.seed] = (point.ce, ratio)
    rows = []
    for (final, share), seeds in sorted(by_share.items()):
        ratios = [ratio for _, ratio in seeds.values() if ratio is not None]
        rows.append(
            Ratios(
                share,
                final,
                loss=statistics.median(loss for loss, _ in seeds.values()),
                per_seed={seed: ratio for seed, (_, ratio) in seeds.items()},
                median=statistics.median(ratios) if ratios else None,
                least=min(ratios, default=None),
                most=max(ratios, default=None),
                n_reached=len(ratios),
            )
        )
    return rows


def speedup_to_e2e(runs: Sequence[ComparisonRun]) -> dict[str, Speedup]:
    """The one number: how much sooner, in training time, the best rival reaches the lowest loss of the end-to-end SAE.

    Of several SAEs trained end to end, the first of those trained on the KL alone. Rivals that get there with every
    seed come before those that get there with some.

    Returns:
        By cost, the best rival's; {} where there is no such SAE or no rival.
    """
    plain = {run.name for run in runs if run.method == "e2e"}
    rows = [row for row in speedups(runs) if row.final]
    rows = [row for row in rows if row.target in plain] or rows
    rows = [row for row in rows if (row.target, row.budget) == (rows[0].target, rows[0].budget)]
    timed = [row for row in rows if row.cost == "seconds"]
    best = max(timed, key=lambda row: (row.n_reached, row.median or 0.0), default=None)
    return {} if best is None else {row.cost: row for row in rows if row.rival == best.rival}
