"""A sweep's table -> Markdown, plain text, figures. Pure: it sees rows, never a model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelora.evals.loss_result import FigureName
from saelora.identity import groups, not_comparable
from saelora.reporting import tables
from saelora.reporting.format import finite
from saelora.reporting.outcome import DONE
from saelora.reporting.style import BLUE, COLOURS, GREY, MARKERS, ORANGE, save_drawing
from saelora.reporting.sweep_point import SweepPoint
from saelora.reporting.text import ended_worse

AXES = {  # column -> its label, and whether equal steps on the axis are equal factors
    "rank": ("LoRA rank", True),
    "l0": ("L0 (active latents per token)", True),
    "d_sae": ("SAE width (latents)", True),
    "layer": ("layer of the (lowest) SAE", False),
    "adapted_layer": ("the one adapted layer", False),
    "n_adapted_layers": ("adapted layers", False),
    "n_saes": ("SAEs spliced in at once", False),
    "n_parameters": ("model size (parameters)", True),
    "alpha": ("LoRA alpha", True),
    "lr": ("peak learning rate", True),
    "fvu": ("FVU (fraction of variance unexplained)", False),
    "fvu_rest": ("FVU without the largest 0.1 % of tokens", False),
    "relative_error": ("squared error of a token over its squared norm (median)", False),
    "n_tokens_trained": ("tokens of adaptation", True),
}
WHOLE = ("layer", "adapted_layer", "n_adapted_layers", "n_saes")  # axes of whole numbers
PANELS = (("gap_closed", "share of the gap closed (%)", 100.0), ("ce_gain", "gain (nats per token)", 1.0))
SERIES = (*AXES, "placement", "model", "seed")
FIRST = (
    "model",
    "sae",
    "layer",
    "n_saes",
    "d_sae",
    "l0",
    "fvu",
    "relative_error",
    "top_variance",
    "rank",
    "placement",
    "lr",
    "seed",
)
FIGURES: tuple[FigureName, ...] = (
    "ce_base",
    "ce_sae",
    "ce_adapted",
    "ce_adapted_clean",
    "kl_adapted",
    "ce_gain",
    "gap_closed",
)


def table(rows: Sequence[SweepPoint]) -> list[list[str]]:
    """Header and lines: the columns in which rows differ, and the figures with their 95 % intervals."""
    if not rows:
        return [["no point is done yet"]]
    varied = varied_columns(rows)
    measured = [c for c in FIGURES if any(c in row.model_fields_set for row in rows)]
    letters = groups([row.about for row in rows])
    marked = ["text"] if len(set(letters)) > 1 else []
    lines = [[*varied, *marked, *measured]]
    for row, letter in zip(rows, letters, strict=True):
        cells = [*(_cell(column, getattr(row, column)) for column in varied), *(letter for _ in marked)]
        for column in measured:
            interval = row.interval(column)
            shown = _cell(column, finite(getattr(row, column)))
            if interval and column in ("gap_closed", "ce_gain"):
                shown += f" ({_cell(column, interval[0])} to {_cell(column, interval[1])})"
            cells.append(shown)
        if ended_worse(row):
            cells[-1] += ", worse than spliced"
        if row.status != DONE:
            cells[-1] = row.status
        lines.append(cells)
    return lines


def varied_columns(rows: Sequence[SweepPoint]) -> list[str]:
    """Those of FIRST in which rows differ."""
    return [c for c in FIRST if len({str(getattr(row, c)) for row in rows}) > 1] or ["rank"]


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if column == "gap_closed":
        return f"{value:.1%}"
    if column in ("sae", "hookpoint"):
        names = [str(ref).removeprefix("{saes}/") for ref in value]
        return names[0] if len(names) == 1 else f"{len(names)} SAEs"
    if isinstance(value, float):
        return (
            f"{value:.4f}" if column.startswith(("ce_", "kl_")) else f"{value:.3g}" if value < 100 else f"{value:.0f}"
        )
    return f"{value:,}" if isinstance(value, int) and column != "seed" else str(value)


def notes(rows: Sequence[SweepPoint]) -> list[str]:
    """What does not compare, and which points ended worse than they began."""
    told = not_comparable([row.about for row in rows], "points")
    worse = sum(bool(ended_worse(row)) for row in rows)
    if worse:
        told.append(f"{worse} of {len(rows)} points ended worse than the spliced model that they began from.")
    return told


def markdown(rows: Sequence[SweepPoint]) -> str:
    """The table in Markdown, with its notes."""
    return "\n\n".join([tables.markdown(table(rows)), *notes(rows)])


def text_table(rows: Sequence[SweepPoint]) -> str:
    """The table in aligned plain text, with its notes."""
    return "\n".join([tables.aligned(table(rows)), *notes(rows)])


def figures(rows: Sequence[SweepPoint], x: str, series: str | None, title: str, folder: Path) -> list[Path]:
    """``draw`` as SVG and PNG; the paths, none where there is nothing to draw."""
    return save_drawing(lambda: draw(rows, x, series, title), folder / x)


def draw(rows: Sequence[SweepPoint], x: str, series: str | None, title: str) -> Any:
    """Gap closed and gain against a column (over n_saes: the cross entropies), a figure of matplotlib's.

    Rows that differ in their seed alone become one point, with a bar from the lowest to the highest; a row alone has
    its 95 % interval. None where x has fewer than two values.

    Args:
        x: one of AXES.  series: one of AXES or SERIES; a line is drawn for each of its values.
    """
    rows = [row for row in rows if row.status == DONE and row.gap_closed is not None]
    if len({getattr(row, x) for row in rows} - {None}) < 2:
        return None
    import matplotlib.pyplot as plt

    if len(set(groups([row.about for row in rows]))) > 1:
        title = f"{title}\n(not all points compare: see the notes under the table)"
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    try:
        if x == "n_saes":
            _cross_entropies(axes[0], rows)
            _panel(axes[1], rows, x, series, *PANELS[0])
        else:
            for panel, each in zip(axes, PANELS, strict=True):
                _panel(panel, rows, x, series, *each)
        for panel in axes:
            _x_axis(panel, rows, x)
        figure.suptitle(title, fontsize=11, parse_math=False)
    except BaseException:
        plt.close(figure)
        raise
    return figure


def _x_axis(axes: Any, rows: Sequence[SweepPoint], x: str) -> None:
    label, logarithmic = AXES.get(x, (x, False))
    values = sorted({getattr(row, x) for row in rows} - {None})
    if logarithmic and values[0] > 0:
        axes.set_xscale("log")
    if len(values) <= 10:
        axes.set_xticks(values, [_tick(value) for value in values])
        axes.minorticks_off()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _tick(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _panel(axes: Any, rows: Sequence[SweepPoint], x: str, series: str | None, y: str, label: str, scale: float) -> None:
    named = lines(rows, series)
    for i, (name, own) in enumerate(named.items()):
        made = points(own, x, y)
        if not made:
            continue
        xs, ys, lows, highs = zip(*made, strict=True)
        bars = [[(m - low) * scale for m, low in zip(ys, lows, strict=True)]]
        bars.append([(high - m) * scale for m, high in zip(ys, highs, strict=True)])
        axes.errorbar(
            xs,
            [value * scale for value in ys],
            yerr=[[max(0.0, v) for v in side] for side in bars],
            fmt=f"{MARKERS[i % 7]}-",
            color=COLOURS[i % 7],
            capsize=3,
            label=name or None,
        )
    elsewhere = [row for row in rows if getattr(row, x) is None and getattr(row, y) is not None]
    for row in elsewhere:  # such as all layers adapted, beside single ones: no place on the axis, but a height
        axes.axhline(getattr(row, y) * scale, color=COLOURS[1], linestyle=":", label=f"placement {row.placement}")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel(label)
    if len(named) > 1 or series is not None or elsewhere:
        axes.legend(frameon=False, fontsize=8)


def lines(rows: Sequence[SweepPoint], series: str | None) -> dict[str, list[SweepPoint]]:
    """Rows by the line that they are drawn as, under its label: one for each value of ``series``.

    Rows of one model that do not compare stand apart; of several models they never do, and a line may lead over them.
    """
    letters = groups([row.about for row in rows])
    by_model: dict[str, set[str]] = {}
    for row, letter in zip(rows, letters, strict=True):
        by_model.setdefault(row.model, set()).add(letter)
    apart = any(len(each) > 1 for each in by_model.values())
    found: dict[str, list[SweepPoint]] = {}
    for row, letter in zip(rows, letters, strict=True):
        parts = [] if series is None else [f"{AXES.get(series, (series,))[0]} {getattr(row, series)}"]
        found.setdefault(", ".join([*parts, f"text {letter}"] if apart else parts), []).append(row)
    return found


def points(rows: Sequence[SweepPoint], x: str, y: str) -> list[tuple[float, float, float, float]]:
    """(x, y, low, high), ascending in x: seeds averaged, their range the bar; a single run's bar is its interval."""
    groups: dict[str, list[SweepPoint]] = {}
    for row in rows:
        if getattr(row, x) is not None and getattr(row, y) is not None:
            config = {k: v for k, v in row.config.items() if k != "seed"}
            groups.setdefault(repr(sorted(config.items())), []).append(row)
    out = []
    for group in groups.values():
        values = [getattr(row, y) for row in group]
        low, high = (min(values), max(values)) if len(group) > 1 else group[0].ci95[y]
        middle = math.fsum(getattr(row, x) for row in group) / len(group)
        out.append((middle, math.fsum(values) / len(group), low, high))
    return sorted(out)


def _cross_entropies(axes: Any, rows: Sequence[SweepPoint]) -> None:
    lines = (("ce_sae", "spliced", ORANGE, "s-"), ("ce_adapted", "spliced + adapted", BLUE, "o-"))
    for column, name, colour, style in lines:
        made = points(rows, "n_saes", column)
        axes.plot([p[0] for p in made], [p[1] for p in made], style, color=colour, label=name)
    base = points(rows, "n_saes", "ce_base")
    axes.plot([p[0] for p in base], [p[1] for p in base], "-", color=GREY, label="original")
    axes.set_ylabel("cross entropy (nats per token)")
    axes.legend(frameon=False, fontsize=8)
