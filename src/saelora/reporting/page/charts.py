"""Series of numbers -> SVG that lives in a page: text stays text, and colours are the page's CSS variables."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saelora.reporting.format import count, one_line
from saelora.reporting.style import AMBER, BLACK, BLUE, COLOURS, GREEN, GREY, MARKERS, ORANGE, PINK, SKY

INK, RULE = "#010203", "#d0d1d2"  # stand for the page's own colours of text and of rules
VARIABLES = {
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PINK: "--pink",
    AMBER: "--amber",
    SKY: "--sky",
    GREY: "--muted",
    INK: "--ink",
    RULE: "--rule",
    BLACK: "--ink",
}
Style = dict[str, Any]  # of a line, as matplotlib's keyword arguments
_LINES = ("-", "--", "-.", ":")
_WIDTH = 5.2  # inches: text of 10 points stays readable on a phone's 360 pixels
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "saelora",
    "text.parse_math": False,  # a run's name may hold dollars
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.7,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Series:
    """Points of one name; a point whose y is None is left out, an interval with a None is not drawn."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    style: Style = field(default_factory=dict)

    def points(self) -> tuple[list[float], list[float], list[list[float]] | None]:
        """x, y and the intervals' two sides, as matplotlib wants them."""
        kept = [i for i, y in enumerate(self.y) if y is not None]
        ys = [float(self.y[i] or 0.0) for i in kept]
        if not self.low:
            return [self.x[i] for i in kept], ys, None
        sides: list[list[float]] = [[], []]
        for i, y in zip(kept, ys, strict=True):
            low, high = self.low[i], self.high[i]
            sides[0].append(0.0 if low is None else max(0.0, y - low))
            sides[1].append(0.0 if high is None else max(0.0, high - y))
        return [self.x[i] for i in kept], ys, sides


def style(i: int, line: int | None = None) -> Style:
    """Colour, marker and line of the i-th series: any two of the first seven differ in the first two of these."""
    return {
        "color": COLOURS[i % 7],
        "marker": MARKERS[i % 7],
        "linestyle": _LINES[(i // 7 if line is None else line) % 4],
        "markersize": 5,
        "linewidth": 1.6,
    }


@dataclass(frozen=True)
class GapBar:
    """A run's gap in nats above the original model, what is left of it, and the interval of that."""

    label: str
    gap: float
    left: float
    interval: Sequence[float] | None


def gap_bars(bars: Sequence[GapBar], name: str) -> str:
    """A bar a run: from the original model (0) to the spliced one, with what the adapter won back."""

    def draw(axes: Any) -> None:
        for i, bar in enumerate(bars):
            gap, left = bar.gap, bar.left
            low, high = sorted((left, gap))
            won = left <= gap
            axes.barh(i, min(low, gap), 0.5, color="none", edgecolor=ORANGE, hatch="////")
            axes.barh(i, high - low, 0.5, left=low, color=BLUE if won else ORANGE, edgecolor=BLUE if won else ORANGE)
            axes.plot([left, left], [i - 0.36, i + 0.36], color=INK, linewidth=2)
            if bar.interval:
                side = [[max(0.0, left - bar.interval[0])], [max(0.0, bar.interval[1] - left)]]
                axes.errorbar([left], [i], xerr=side, fmt="none", ecolor=INK, color=INK, capsize=4, linewidth=1.4)
        axes.set_yticks(range(len(bars)), [short(bar.label) for bar in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("nats per token above the original model")
        key = axes.figure.legend(handles=_gap_key(bars), loc="outside upper left", ncols=3, columnspacing=1.2)
        key.set_in_layout(True)

    return drawn(draw, name, 1.15 + 0.5 * len(bars))


def _gap_key(bars: Sequence[GapBar]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    key: list[Any] = [Patch(facecolor="none", edgecolor=ORANGE, hatch="////", label="cost that is left")]
    if any(bar.left <= bar.gap for bar in bars):
        key.append(Patch(color=BLUE, label="won back"))
    if any(bar.left > bar.gap for bar in bars):
        key.append(Patch(color=ORANGE, label="added by the adapter"))
    key.append(Line2D([], [], color=INK, linewidth=2, marker="|", markersize=9, label="adapted"))
    return key


@dataclass(frozen=True)
class Bar:
    """A named bar from zero to ``value``, with its interval and its look: won, left or worse."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    look: str = "won"


_LOOKS: dict[str, dict[str, Any]] = {
    "won": {"color": BLUE, "edgecolor": BLUE},
    "left": {"color": "none", "edgecolor": ORANGE, "hatch": "////"},
    "worse": {"color": ORANGE, "edgecolor": ORANGE},
}


def bars(given: Sequence[Bar], name: str, x: str) -> str:
    """Horizontal bars from zero, each with its interval."""

    def draw(axes: Any) -> None:
        for i, bar in enumerate(given):
            axes.barh(i, bar.value, 0.55, **_LOOKS[bar.look])
            if bar.interval:
                side = [[max(0.0, bar.value - bar.interval[0])], [max(0.0, bar.interval[1] - bar.value)]]
                axes.errorbar([bar.value], [i], xerr=side, fmt="none", ecolor=INK, color=INK, capsize=4, linewidth=1.4)
        axes.axvline(0, color=INK, linewidth=2)
        axes.set_yticks(range(len(given)), [short(bar.label, 44) for bar in given])
        axes.set_ylim(len(given) - 0.5, -0.5)
        axes.xaxis.get_major_locator().set_params(nbins=6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(x)

    return drawn(draw, name, 0.75 + 0.36 * len(given))


def lines(
    series: Sequence[Series],
    name: str,
    x: str,
    y: str,
    *,
    zero: bool = False,
    levels: Sequence[tuple[str, float]] = (),
    log_x: bool = False,
    thousands: bool = False,
    whole: bool = True,
) -> str:
    """Lines with intervals over a numeric axis, and named levels as thin lines across."""

    def draw(axes: Any) -> None:
        for each in series:
            xs, ys, sides = each.points()
            axes.errorbar(xs, ys, yerr=sides, capsize=2, elinewidth=1, label=_entry(each.label), **each.style)
        if zero:
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        for i, (told, value) in enumerate(levels):
            axes.axhline(value, color=GREY, linewidth=1, linestyle=_LINES[i % 4], label=_entry(told), zorder=0)
        if log_x:
            axes.set_xscale("log")
            _ticks_at(axes, [x for each in series for x in each.x])
        elif thousands:
            axes.set_xlim(left=0)
        elif whole:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if thousands:
            axes.xaxis.set_major_formatter(lambda value, _: count(value, 6))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _grid(axes, "y")
        _legend(axes, len(series) + len(levels))

    return drawn(draw, name, 3.2 + 0.18 * max(0, len(series) + len(levels) - 2))


def dots(categories: Sequence[str], series: Sequence[Series], name: str, x: str) -> str:
    """A line a category, a dot with its interval a series; zero is marked. A series' x holds category numbers."""

    def draw(axes: Any) -> None:
        for i, each in enumerate(series):
            at, values, sides = each.points()
            shift = (i - (len(series) - 1) / 2) * 0.6 / max(1, len(series))
            look = {**each.style, "linestyle": "none"}
            axes.errorbar(values, [a + shift for a in at], xerr=sides, capsize=2, label=_entry(each.label), **look)
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        axes.xaxis.get_major_locator().set_params(nbins=6)
        axes.set_yticks(range(len(categories)), [short(each) for each in categories])
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x)
        _grid(axes, "y")
        _legend(axes, len(series))

    return drawn(draw, name, 1.2 + max(0.32, 0.17 * len(series)) * len(categories) + 0.2 * (len(series) > 1))


def histogram(edges: Sequence[float], groups: Sequence[tuple[str, Sequence[float], Sequence[float]]], name: str) -> str:
    """Shares of tokens over the size of their change: helped ones upwards, hurt ones downwards.

    Args:
        edges: n + 1 positive numbers.  groups: (label, n shares that were helped, n that were hurt).
    """

    def draw(axes: Any) -> None:
        for i, (label, up, down) in enumerate(groups):
            below = [-value for value in down]
            if len(groups) == 1:
                axes.stairs(up, edges, fill=True, color=BLUE, label="helped (upwards)")
                axes.stairs(below, edges, fill=True, facecolor="none", edgecolor=ORANGE, hatch="////", linewidth=0)
                axes.stairs(below, edges, color=ORANGE, label="hurt (downwards)")
            else:
                look = {"color": style(i)["color"], "linestyle": _LINES[i % 4], "linewidth": 1.5}
                axes.stairs(up, edges, baseline=None, label=_entry(label), **look)
                axes.stairs(below, edges, baseline=None, **look)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.3g}")
        axes.set_xlabel("size of the change in loss (nats)")
        axes.set_ylabel("% of tokens: hurt ↓   helped ↑" if len(groups) > 1 else "% of tokens")
        _grid(axes, "y")
        _legend(axes, max(2, len(groups)))

    return drawn(draw, name, 3.2 + 0.18 * max(0, len(groups) - 2))


def drawn(draw: Callable[[Any], None], name: str, height: float) -> str:
    """The SVG of one pair of axes; ``name`` makes its ids unique in the page. The same numbers give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs of names that this machine's font lacks: the reader's has its own
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(out.getvalue(), name)


def embedded(build: Callable[[], Any], name: str) -> str | None:
    """The SVG of a figure of matplotlib's that ``build`` draws, in the page's colours; None where it draws none."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out = io.StringIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = build()
        if figure is None:
            return None
        try:
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        finally:
            plt.close(figure)
    return _for_page(out.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :].replace("<svg ", '<svg aria-hidden="true" ', 1)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#)', rf"\1{name}-", svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(colour + r"(?=[;\"])", f"var({variable})", svg, flags=re.IGNORECASE)
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip())


def _ticks_at(axes: Any, values: Sequence[float]) -> None:
    """A tick at every value of a logarithmic axis, or at those that do not crowd it."""
    places = sorted(set(values))
    places = places[:: -(-len(places) // 8)]
    axes.set_xticks(places, [count(value, 6) for value in places])
    axes.minorticks_off()


def _grid(axes: Any, which: str) -> None:
    axes.grid(axis=which, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Any, n: int) -> None:
    if n > 1:
        axes.figure.legend(loc="outside upper left", ncols=2 if n < 9 else 3, columnspacing=1.2, handlelength=2.4)


def short(label: str, n: int = 30) -> str:
    """A name for a figure: one line, of at most n characters."""
    label = one_line(label)
    return label if len(label) <= n else f"{label[: n - 1]}…"


def _entry(label: str) -> str:
    """A legend's entry: matplotlib passes over those that begin with an underscore."""
    label = short(label)
    return f" {label}" if label.startswith("_") else label


def slug(text: str) -> str:
    """A name as an id: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
