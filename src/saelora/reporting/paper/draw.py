"""A plot as a figure of matplotlib's, at a column's width, with text that stays text."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelora.files import write_whole
from saelora.reporting.paper.plot import Line, Panel, Plot, Point
from saelora.reporting.style import COLOURS, GREY, MARKERS

WIDTHS = {"single": 3.25, "double": 6.75}  # inches: a column, and the page, of ICML's and most two-column styles
_PANEL, _LEGEND = 2.1, 0.16  # inches: a panel's height, a line of the legend
_HANDLE, _LETTER = 0.45, 0.057  # inches: what a legend's entry takes beside its text, and for each letter
_LOOK: Any = {  # matplotlib types its keys one by one
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType, embedded: what journals ask for, and text can be searched
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "saelora",  # the same data give the same bytes
}


def save(plot: Plot, stem: Path, width: str, formats: Sequence[str]) -> list[Path]:
    """Write the figure in each format beside ``stem``; the paths."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    with drawn(plot, width) as figure:
        for path, suffix in zip(paths, formats, strict=True):
            out = io.BytesIO()
            figure.savefig(out, format=suffix, dpi=300, metadata=_metadata(plot, suffix))
            write_whole(path, out.getvalue())
    return paths


@contextmanager
def drawn(plot: Plot, width: str) -> Iterator[Any]:
    """The figure, as long as the block lasts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    beside = width == "double" and len(plot.panels) > 1
    shape = (1, len(plot.panels)) if beside else (len(plot.panels), 1)
    rows, columns = _legend(plot, WIDTHS[width])
    size = (WIDTHS[width], shape[0] * _PANEL + rows * _LEGEND + 0.2)
    with plt.rc_context(_LOOK):
        figure, panels = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharex=not beside)
        try:
            for axes, panel in zip(panels.flat, plot.panels, strict=True):
                _draw(axes, panel, plot)
            for axes in panels.flat if beside else panels[-1]:
                axes.set_xlabel(plot.x_label)
            if rows:
                handles, labels = panels.flat[0].get_legend_handles_labels()
                figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=columns)
            yield figure
        finally:
            plt.close(figure)


def _legend(plot: Plot, width: float) -> tuple[int, int]:
    """Rows and columns of the legend; no rows where there is one line alone."""
    names = list(dict.fromkeys(line.group or line.label for line in plot.panels[0].lines))
    wide = _HANDLE + _LETTER * max(map(len, names))
    columns = max(1, min(len(names), int(width / wide)))
    return (0 if len(names) < 2 else -(-len(names) // columns)), columns


def _fitting(name: str, width: float) -> str:
    """A legend's entry that fits the figure; what is too long loses its middle."""
    most = int((width - _HANDLE) / _LETTER)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _draw(axes: Any, panel: Panel, plot: Plot) -> None:
    named: set[str] = set()
    for i, line in enumerate(panel.lines):
        shift = (i - (len(panel.lines) - 1) / 2) * 0.12 if plot.names else 0.0
        name = line.group or line.label
        _line(axes, line, shift, _fitting(name, axes.figure.get_figwidth()) if name not in named else "_")
        named.add(name)
    for label, height in panel.levels:
        axes.axhline(height, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(label, (1, height), xycoords=("axes fraction", "data"), xytext=(0, 2), ha="right", va="bottom",
                      textcoords="offset points", color=GREY, fontsize=7)  # fmt: skip
    axes.set_ylabel(panel.y_label)
    if panel.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:g}")
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    _x_axis(axes, panel, plot)


def _line(axes: Any, line: Line, shift: float, name: str) -> None:
    """``name`` is the legend's; one that begins with _ is not shown."""
    colour, marker = COLOURS[line.colour % len(COLOURS)], MARKERS[line.colour % len(MARKERS)]
    points = [point for point in line.points if point[1] is not None]
    xs, ys = [point[0] + shift for point in points], [point[1] for point in points]
    look = {"color": colour, "marker": marker, "linestyle": ("--" if line.dashed else "-") if line.joined else "none"}
    if line.dashed:
        look["markerfacecolor"] = "white"
    axes.plot(xs, ys, label=name, **look)
    known = [(x, point) for x, point in zip(xs, points, strict=True) if point[2] is not None and point[3] is not None]
    if not known:
        return
    if line.band and len(known) > 1:
        lows, highs = [point[2] for _, point in known], [point[3] for _, point in known]
        axes.fill_between([x for x, _ in known], lows, highs, color=colour, alpha=0.15, linewidth=0)
    else:
        at = [x for x, _ in known], [point[1] for _, point in known]
        axes.errorbar(
            *at, yerr=_sides([point for _, point in known]), fmt="none", color=colour, capsize=2, linewidth=0.9
        )


def _sides(points: Sequence[Point]) -> list[list[float]]:
    """Lengths of the bars below and above; an interval by percentiles need not hold its value."""
    below = [max(0.0, y - (low if low is not None else y)) for _, y, low, _ in points]
    return [below, [max(0.0, (high if high is not None else y) - y) for _, y, _, high in points]]


def _x_axis(axes: Any, panel: Panel, plot: Plot) -> None:
    values = sorted({point[0] for line in panel.lines for point in line.points})
    if plot.names:
        axes.set_xticks(range(len(plot.names)), plot.names)
        axes.set_xlim(-0.5, len(plot.names) - 0.5)
        return
    if plot.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    elif values and max(values) >= 10_000:
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    if len(values) <= 8 and (plot.log_x or plot.whole):
        axes.set_xticks(values, [short(value) for value in values])
        axes.minorticks_off()


def short(value: float) -> str:
    """A tick's label: 25600 is 25.6k."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**4, "")):
        if letter and abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value / 1000:.4g}k" if abs(value) >= 10_000 else f"{value:.4g}"


def _metadata(plot: Plot, suffix: str) -> dict[str, Any]:
    """What the figure is of, where the format has a place for it; no date: the same data give the same bytes."""
    title = f"saelora figure: {plot.kind}"
    if suffix == "pdf":
        return {"Title": title, "Subject": plot.about, "CreationDate": None}
    if suffix == "svg":
        return {"Title": title, "Description": plot.about, "Date": None}
    return {"Title": title, "Description": plot.about}
