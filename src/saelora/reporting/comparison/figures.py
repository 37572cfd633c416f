"""A comparison's figures, each as SVG and PNG; one that has nothing to show is left out."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from saelora.reporting.comparison.curves import (
    COSTS,
    curve_of,
    finite,
    label_of_start,
    rival_name,
    speedup_to_e2e,
    speedups,
)
from saelora.reporting.comparison.equal import EQUAL, Compared, equal_seconds, equal_tokens, main_group
from saelora.reporting.comparison.latents import left_behind
from saelora.reporting.comparison.run import ComparisonRun
from saelora.reporting.style import AMBER, BLACK, BLUE, GREEN, GREY, MARKERS, ORANGE, PINK, SKY, save_drawing

# SAEs from scratch are dashed, and whatever shares a colour has its marker.
_SAE_COLOURS = (BLACK, ORANGE, AMBER)
_METHOD_COLOURS = (BLUE, GREEN, PINK, SKY, AMBER, GREY)
_WIDTH = 5.0  # inches: at a phone's width, text of 10 points can still be read
Curve = list[tuple[float, float, float]]  # share of the run, seconds of all training, cross entropy
Style = dict[str, tuple[str, str, str]]  # name -> colour, marker, line


def figures(runs: Sequence[ComparisonRun], folder: Path) -> list[Path]:
    """Draw race, speedups, equal and left_behind into a folder; returns the paths of what was drawn."""
    style = style_of(runs)
    drawings = (save_drawing(partial(draw, runs, style), folder / name) for name, draw in DRAWINGS.items())
    return [path for paths in drawings for path in paths]


def style_of(runs: Sequence[ComparisonRun]) -> Style:
    """Colour, marker and line of each name."""
    kinds = {run.name: run.kind for run in runs}
    counts, style = {"sae": 0, "method": 0}, {}
    for i, (name, kind) in enumerate(kinds.items()):
        colours = _SAE_COLOURS if kind == "sae" else _METHOD_COLOURS
        line = "--" if kind == "sae" else "-"
        style[name] = colours[counts[kind] % len(colours)], MARKERS[i % len(MARKERS)], line
        counts[kind] += 1
    return style


def _race(runs: Sequence[ComparisonRun], style: Style) -> Any:
    """Cross entropy against all training time, the SAE's own counted."""
    import matplotlib.pyplot as plt

    groups = _curves_by_start(runs)
    if not groups:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 4.6), layout="constrained")
    seen: set[str] = set()
    for (name, _), curves in groups.items():
        colour, marker, line = style[name]
        for curve in curves if len(curves) > 1 else ():
            axes.plot(*_xy(curve), color=colour, linewidth=0.7, alpha=0.4)
        label = None if name in seen else name
        axes.plot(*_xy(_median_curve(curves)), marker + line, color=colour, linewidth=1.8, markersize=4, label=label)
        seen.add(name)
    base = base_of(runs)
    if base is not None:
        axes.axhline(base, color=GREY, linestyle=":", label="original model")
        axes.set_ylim(_range_of_interest(groups, base))
    _log(axes, "x")
    axes.set_xlabel("seconds of training, the SAE's included")
    axes.set_ylabel("cross entropy (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    return figure


def race_curves(runs: Sequence[ComparisonRun]) -> dict[tuple[str, str | None], Curve]:
    """By name and start, the median over seeds of each way's curve; those whose training time is known."""
    return {key: _median_curve(curves) for key, curves in _curves_by_start(runs).items()}


def _curves_by_start(runs: Sequence[ComparisonRun]) -> dict[tuple[str, str | None], list[Curve]]:
    groups: dict[tuple[str, str | None], list[Curve]] = {}
    for run in _largest_budgets(runs):
        points = [(point.share, point.total_seconds or 0, point.ce) for point in curve_of(run)]
        curve = [point for point in points if point[1] > 0]
        if curve:
            groups.setdefault((run.name, label_of_start(run)), []).append(curve)
    return groups


def base_of(runs: Sequence[ComparisonRun]) -> float | None:
    """Cross entropy of the original model."""
    bases = [run.final.ce_base for run in runs if finite(run.final.ce_base)]
    return statistics.median(bases) if bases else None


def _log(axes: Any, which: str, unit: str = "") -> None:
    """Equal steps are equal factors; tick labels are plain numbers, in between at 2 and 5 only."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}{unit}" if f"{value:.0e}"[0] in "25" else "")


def _largest_budgets(runs: Sequence[ComparisonRun]) -> list[ComparisonRun]:
    """Methods at the largest budget of each start, and every SAE: smaller budgets lie on almost the same lines."""
    most: dict[tuple[str, str | None], int] = {}
    for run in runs:
        key = (run.name, label_of_start(run))
        most[key] = max(most.get(key, 0), run.budget)
    return [r for r in runs if r.kind == "sae" or r.budget == most[r.name, label_of_start(r)]]


def _range_of_interest(groups: Mapping[tuple[str, str | None], Sequence[Curve]], base: float) -> tuple[float, float]:
    """From the original model's loss up to where methods begin and SAEs end; an SAE's first loss is far above."""
    tops = [curve[0 if start else -1][2] for (_, start), curves in groups.items() for curve in curves]
    tops += [curve[min(1, len(curve) - 1)][2] for (_, start), curves in groups.items() if not start for curve in curves]
    finals = [curve[-1][2] for curves in groups.values() for curve in curves]
    top = min(max(tops), base + 4 * max(statistics.median(finals) - base, 1e-3))
    low = min(base, *finals)
    top = max(top, *finals, low + 1e-3)
    return low - 0.05 * (top - low), top + 0.1 * (top - low)


def _median_curve(curves: Sequence[Curve]) -> Curve:
    """At each share of the run that all seeds have, the medians of seconds and cross entropy."""
    by_share: dict[float, list[tuple[float, float]]] = {}
    for curve in curves:
        for share, seconds, ce in curve:
            by_share.setdefault(share, []).append((seconds, ce))
    return [
        (share, statistics.median(seconds for seconds, _ in points), statistics.median(ce for _, ce in points))
        for share, points in sorted(by_share.items())
        if len(points) == len(curves)
    ]


def _xy(curve: Curve) -> tuple[list[float], list[float]]:
    return [seconds for _, seconds, _ in curve], [ce for *_, ce in curve]


def _speedups(runs: Sequence[ComparisonRun], style: Style) -> Any:
    """Speed-up of each rival against the loss reached; bars from the least to the most over seeds."""
    import matplotlib.pyplot as plt

    best, base = speedup_to_e2e(runs).get("seconds"), base_of(runs)
    if best is None or base is None:
        return None
    rows = [
        row
        for row in speedups(runs)
        if (row.target, row.budget) == (best.target, best.budget)
        and row.median is not None
        and not row.final
        and row.loss > base
    ]
    if not rows:
        return None
    names = {rival_name(run): run.name for run in runs}
    figure, panels = plt.subplots(3, 1, figsize=(_WIDTH, 7.5), layout="constrained", sharex=True)
    for axes, cost, title in zip(panels, COSTS, ("training time", "training tokens", "operations"), strict=True):
        for rival in dict.fromkeys(row.rival for row in rows):
            colour, marker, line = style[names[rival]]
            at = [row for row in rows if row.rival == rival and row.cost == cost]
            x, y = [row.loss - base for row in at], [row.median or 0.0 for row in at]
            ends = [(row.least or 0.0, row.most or 0.0) for row in at]
            sides = [[m - low for m, (low, _) in zip(y, ends, strict=True)]]
            sides.append([high - m for m, (_, high) in zip(y, ends, strict=True)])
            label = rival if axes is panels[0] else None
            axes.errorbar(x, y, yerr=sides, fmt=marker + line, color=colour, capsize=3, markersize=5, label=label)
        axes.axhline(1, color=GREY, linewidth=0.8)
        _log(axes, "y", "×")
        axes.set_title(f"speed-up in {title}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xscale("log")
    reached = sorted({row.loss - base for row in rows})
    panels[-1].set_xticks(reached, [f"{loss:.2g}" for loss in reached], rotation=45)
    panels[-1].minorticks_off()
    panels[0].invert_xaxis()
    panels[-1].set_xlabel(f"loss reached, above the original model's (nats per token)\n{best.target} costs 1×")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def _equal(runs: Sequence[ComparisonRun], style: Style) -> Any:
    """Gap closed at equal tokens and in equal time: means with intervals, seeds as dots."""
    import matplotlib.pyplot as plt

    tokens = main_group(equal_tokens(runs))
    if not tokens:
        return None
    where = (tokens[0].start, tokens[0].budget)
    timed = [row for row in equal_seconds(runs) if (row.start, row.budget) == where]
    parts = [(tokens, f"at {where[1]:,} tokens", _plain_name)]
    if timed:
        parts.append((timed, f"in {timed[0].limit:,.0f} s of training", _name_and_time))
    height = 0.8 + sum(0.7 + 0.36 * len(rows) for rows, *_ in parts)
    figure, panels = plt.subplots(
        len(parts), 1, figsize=(_WIDTH, height), layout="constrained", sharex=True, squeeze=False,
        height_ratios=[len(rows) + 1 for rows, *_ in parts],
    )  # fmt: skip
    for axes, (rows, title, name_of) in zip(panels[:, 0], parts, strict=True):
        _gaps(axes, rows, style, name_of)
        axes.set_title(title, fontsize=10, loc="left")
    figure.supxlabel(f"share of the gap closed (%)\nfrom {where[0]}", fontsize=10)
    return figure


def _gaps(axes: Any, rows: Sequence[Compared], style: Style, name_of: Callable[[Compared], str]) -> None:
    for y, row in enumerate(rows):
        colour, marker, _ = style[row.name]
        value = row.value * 100
        known = row.low is not None and row.high is not None
        bars = [[value - (row.low or 0.0) * 100], [(row.high or 0.0) * 100 - value]] if known else None
        axes.errorbar([value], [y], xerr=bars, fmt=marker, color=colour, capsize=4, markersize=7)
        if len(row.per_seed) > 1:
            seeds = [gap * 100 for gap in row.per_seed.values()]
            axes.plot(seeds, [y - 0.28] * len(seeds), ".", color=colour, markersize=5, alpha=0.7)
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _plain_name(row: Compared) -> str:
    return row.name


def _name_and_time(row: Compared) -> str:
    return row.name if row.how in EQUAL else f"{row.name} (took {row.seconds:,.0f} s)"


def _left_behind(runs: Sequence[ComparisonRun], style: Style) -> Any:
    """One panel a figure, one bar a way."""
    import matplotlib.pyplot as plt

    titles = {
        "fvu": "FVU of the SAE",
        "relative_error": "squared error of a token over\nits squared norm (median)",
        "l0": "L0 (active latents per token)",
        "dead_frac": "latents that never fired (%)",
        "jaccard": "same latents before and after\n(Jaccard)",
        "rate_correlation": "firing rates before and after\n(correlation)",
        "clean_cost": "cost with the SAE taken out\n(nats per token)",
    }
    rows = left_behind(runs)
    shown = [key for key in titles if any(row.figures[key] is not None for row in rows)]
    if not shown:
        return None
    n = -(-len(shown) // 2)
    size = (_WIDTH + 1, n * (0.8 + 0.2 * len(rows)))
    figure, panels = plt.subplots(n, 2, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, key in zip(panels.flat, shown, strict=False):
        for y, row in enumerate(rows):
            value = row.figures[key]
            if value is not None:
                axes.barh(y, value * (100 if key == "dead_frac" else 1), color=style[row.name][0], height=0.6)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_title(titles[key], fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


DRAWINGS: dict[str, Callable[[Sequence[ComparisonRun], Style], Any]] = {
    "race": _race,
    "speedups": _speedups,
    "equal": _equal,
    "left_behind": _left_behind,
}
