"""Results -> figures. Pure: a figure never sees a model."""

from pathlib import Path
from typing import Any

from saelora.evals.loss_result import FigureName, RunResult
from saelora.reporting.style import BLUE, GREY, ORANGE, save_figure
from saelora.reporting.text import has_gap


def learning_curve(results: RunResult, path: Path) -> None:
    """What was gained on held-out rows against tokens of adaptation.

    The share of the cross-entropy gap closed; where the SAE costs nothing measurable, the cross entropy itself.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    try:
        if has_gap(results):
            _gap_closed(axes, results)
        else:
            _cross_entropy(axes, results)
        axes.set_xlabel("tokens of adaptation")
        axes.set_xlim(left=0)  # where the labels of the lines stand
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="best")
        save_figure(figure, path)
    finally:
        plt.close(figure)


def _gap_closed(axes: Any, results: RunResult) -> None:
    assert results.gap_closed is not None
    points = [(row.n_tokens, row.gap_closed * 100) for row in results.history if row.gap_closed is not None]
    axes.plot(*_xy(points), "o-", color=BLUE, label="while adapting (a few held-out rows)")
    _final(axes, results, "gap_closed", 100, f"all held-out rows: {results.gap_closed:.1%} (95 % interval)")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.annotate("spliced model", (0, 0), xytext=(4, 4), textcoords="offset points", color=GREY, fontsize=9)
    axes.set_ylabel("share of the cross-entropy gap closed (%)")
    axes.set_title(f"Gap of {results.ce_gap:.3f} nats between the original and the spliced model", fontsize=11)


def _cross_entropy(axes: Any, results: RunResult) -> None:
    points = [(row.n_tokens, row.ce) for row in results.history if row.ce is not None]
    axes.plot(*_xy(points), "o-", color=BLUE, label="while adapting (a few held-out rows)")
    _final(axes, results, "ce_adapted", 1, f"all held-out rows: {results.ce_adapted:.3f} (95 % interval)")
    base, spliced = results.ce_base, results.ce_sae
    assert spliced is not None
    below = spliced < base  # labels on the outer sides of two lines that may lie close
    for name, y, style, offset in (
        ("original model", base, "-", 4 if below else -12),
        ("spliced model", spliced, ":", -12 if below else 4),
    ):
        axes.axhline(y, color=GREY, linewidth=0.8, linestyle=style)
        axes.annotate(name, (0, y), xytext=(4, offset), textcoords="offset points", color=GREY, fontsize=9)
    axes.margins(y=0.1)
    axes.set_ylabel("cross entropy (nats per predicted token)")
    axes.set_title("The SAE has no measurable cost here: no gap to close", fontsize=11)


def _final(axes: Any, results: RunResult, name: FigureName, scale: float, label: str) -> None:
    """The last measurement with its interval, if it has one, which by percentiles need not hold the point."""
    value, interval = getattr(results, name), results.interval(name)
    error = None
    if interval is None:
        label = label.removesuffix(" (95 % interval)")
    else:
        error = [[max(0.0, value - interval[0]) * scale], [max(0.0, interval[1] - value) * scale]]
    axes.errorbar(
        [results.n_tokens_trained], [value * scale], yerr=error, fmt="s", color=ORANGE, capsize=4, label=label
    )


def _xy(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
