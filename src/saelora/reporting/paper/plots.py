"""Finished runs, a sweep or a comparison -> what is plotted of them."""

from collections.abc import Sequence

from saelora.errors import InputError
from saelora.evals.estimate import Estimate
from saelora.evals.loss_result import FigureName, RunResult
from saelora.evals.replacement.result import ReplacementResult, Step
from saelora.evals.variant import Variant
from saelora.reporting import sweep
from saelora.reporting.comparison.figures import base_of, race_curves
from saelora.reporting.outcome import DONE
from saelora.reporting.page.collections import Collection
from saelora.reporting.page.read import Run
from saelora.reporting.paper.plot import Line, Panel, Plot, Point
from saelora.reporting.text import has_gap

_GAP, _CE = "share of the gap closed (%)", "cross entropy (nats)"
_SHORT = {
    Variant.BASE: "original",
    Variant.SPLICED: "spliced",
    Variant.ADAPTED: "adapted",
    Variant.ADAPTED_CLEAN: "adapted,\nSAE out",
}


def learning(runs: Sequence[Run]) -> Plot:
    """Gap closed against tokens of adaptation; cross entropy where a run's SAE has no measurable cost.

    Raises:
        InputError: no run measured on the way.
    """
    name: FigureName = "gap_closed" if all(has_gap(run.results) for run in runs) else "ce_adapted"
    lines = []
    for i, run in enumerate(runs):
        seen = _history(run.results, name)
        prefix = f"{run.label}: " if len(runs) > 1 else ""
        if len(seen) > 1:
            lines.append(Line(f"{prefix}while adapting (a few rows)", seen, i, dashed=True))
        last = _point(float(run.results.n_tokens_trained), getattr(run.results, name), run.results.interval(name))
        lines.append(Line(f"{prefix}all held-out rows", [last], i, joined=False))
    if all(len(line.points) < 2 for line in lines):
        raise InputError(
            f"{runs[0].folder} measured nothing while it trained: adapt with --history-points 4, or --kind losses"
        )
    levels = []
    if name == "ce_adapted" and len(runs) == 1:
        levels = [(_SHORT[v], getattr(runs[0].results, v.ce)) for v in (Variant.BASE, Variant.SPLICED)]
    panel = Panel(name, _GAP if name == "gap_closed" else _CE, lines, levels, percent=name == "gap_closed")
    return Plot("learning", "tokens of adaptation", [panel])


def _history(results: RunResult, name: FigureName) -> list[Point]:
    found = [(row.n_tokens, row.gap_closed if name == "gap_closed" else row.ce) for row in results.history]
    return [(n, value, None, None) for n, value in found if value is not None]


def _point(x: float, value: float, interval: Sequence[float] | None) -> Point:
    return (x, value, None, None) if interval is None else (x, value, interval[0], interval[1])


def losses(runs: Sequence[Run]) -> Plot:
    """Cross entropy of each variant, with its interval, run beside run."""
    lines = []
    for i, run in enumerate(runs):
        points = [
            _point(x, value, run.results.ci95.get(v.ce))
            for x, v in enumerate(_SHORT)
            if (value := getattr(run.results, v.ce)) is not None
        ]
        lines.append(Line(run.label, points, i, joined=False))
    return Plot("losses", "", [Panel("ce", _CE, lines)], names=list(_SHORT.values()))


def replacement(runs: Sequence[Run]) -> Plot:
    """KL and cross entropy by how many MLPs transcoders replace: a colour a mode, dashed before adaptation.

    Raises:
        InputError: a run has not measured it.
    """
    kl: list[Line] = []
    ce: list[Line] = []
    levels: list[tuple[str, float]] = []
    colour = 0
    for run in runs:
        found = run.result(ReplacementResult)
        if found is None:
            raise InputError(
                f"{run.folder} has no replacement curve: saelora evaluate --adapter {run.folder} --parts replacement "
                "measures it"
            )
        prefix = f"{run.label}: " if len(runs) > 1 else ""
        for mode, steps in found.curves.items():
            for variant in (Variant.SPLICED, Variant.ADAPTED):
                kept = [step for step in steps if variant in step.ce]
                if kept:
                    label, dashed = f"{prefix}{mode}, {_SHORT[variant]}", variant == Variant.SPLICED
                    kl.append(Line(label, _steps(kept, "kl", variant), colour, dashed, band=True))
                    ce.append(Line(label, _steps(kept, "ce", variant), colour, dashed, band=True))
            colour += 1
        base = found.ce_base["value"]
        if base is not None and base not in [height for _, height in levels]:
            levels.append((f"{prefix}original", base))
    panels = [Panel("kl", "KL to the original (nats)", kl), Panel("ce", _CE, ce, levels)]
    return Plot("replacement", "MLPs replaced by transcoders", panels, whole=True)


def _steps(steps: Sequence[Step], name: str, variant: Variant) -> list[Point]:
    points: list[Point] = []
    for step in steps:
        found: Estimate = getattr(step, name)[variant]
        if found["value"] is not None:
            points.append((step.n_replaced, found["value"], found["low"], found["high"]))
    return points


def swept(found: Collection, x: str | None) -> Plot:
    """A sweep's gap closed over one of its columns, a line for each of its series.

    Raises:
        InputError: the points do not differ in that column, or have no gap.
    """
    x = x or found.x
    rows = [row for row in found.points if row.status == DONE and row.gap_closed is not None]
    values = {getattr(row, x) for row in rows} - {None}
    if len(values) < 2:
        others = [c for c in sweep.AXES if len({getattr(row, c) for row in rows} - {None}) > 1]
        raise InputError(
            f"{found.folder} has {len(values) or 'no'} value of {x} among its finished points, a figure wants two: "
            f"choose another --x ({', '.join(others) or 'its points differ in none'})"
        )
    label, logarithmic = sweep.AXES[x]
    series = found.series if found.series != x else None
    named = sweep.lines(rows, series)
    lines = [
        Line(name or "gap closed", sweep.points(own, x, "gap_closed"), i) for i, (name, own) in enumerate(named.items())
    ]
    levels = [(f"placement {row.placement}", row.gap_closed) for row in rows if getattr(row, x) is None]
    across = [(name, float(y)) for name, y in levels if y is not None]
    log_x = logarithmic and min(values) > 0
    return Plot("sweep", label, [Panel("gap_closed", _GAP, lines, across, percent=True)], log_x, x in sweep.WHOLE)


def race(found: Collection) -> Plot:
    """A comparison's cross entropy against all training time, the SAE's own counted; medians over seeds.

    Raises:
        InputError: no run's time is known.
    """
    curves = race_curves(found.runs)
    if not curves:
        raise InputError(f"{found.folder} has no run whose training time is known: nothing to draw")
    names = list(dict.fromkeys(name for name, _ in curves))
    lines = []
    for (name, start), curve in curves.items():
        label = name if start is None else f"{name} from {start}"
        lines.append(
            Line(label, [(seconds, ce, None, None) for _, seconds, ce in curve], names.index(name), group=name)
        )
    base = base_of(found.runs)
    levels = [] if base is None else [("original model", base)]
    return Plot("race", "seconds of training, the SAE's included", [Panel("ce", _CE, lines, levels)], log_x=True)
