"""What a figure for a paper shows, as data: what is drawn and what its CSV holds are the same numbers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

Point = tuple[float, float, float | None, float | None]
"""x, y, and the ends of y's interval where it has one; all as the result files hold them."""


@dataclass(frozen=True)
class Line:
    """Points that belong together.

    Args:
        group: lines of one group have one entry in the legend, under this name; by default each its own.
        colour: its place in the palette.  dashed: of a pair, the one before adaptation.
        joined: by a line; else each stands for itself.
        band: intervals are drawn as a band; else as bars.
    """

    label: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    joined: bool = True
    band: bool = False
    group: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        name: of the measure, in the CSV.
        levels: label and height of lines across.
        percent: y is a share, shown in per cent.
    """

    name: str
    y_label: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    percent: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure.

    Args:
        names: what x = 0, 1, ... stands for, where it is no quantity.
        whole: x is a whole number.
        about: what it was made from, for the file's metadata.
    """

    kind: str
    x_label: str
    panels: Sequence[Panel]
    log_x: bool = False
    whole: bool = False
    names: Sequence[str] = field(default_factory=tuple)
    about: str = ""


def as_csv(plot: Plot) -> str:
    """Every point that is drawn, one a line, with all its digits; a level has no x."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["panel", "line", "x", "y", "low", "high"])
    for panel in plot.panels:
        for line in panel.lines:
            for x, *values in line.points:
                shown = plot.names[int(x)] if plot.names else x
                writer.writerow([panel.name, line.label, shown, *("" if v is None else repr(v) for v in values)])
        writer.writerows([panel.name, label, "", repr(y), "", ""] for label, y in panel.levels)
    return out.getvalue()
