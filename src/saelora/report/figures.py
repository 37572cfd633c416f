"""Results -> figures. Pure: a figure never sees a model."""

from pathlib import Path
from typing import Any

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def learning_curve(results: dict[str, Any], path: Path) -> None:
    """Cross entropy on held-out rows against tokens of adaptation, between the spliced and the original model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    history = results["history"]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    x = [row["n_tokens"] for row in history]
    y = [row["gap_closed"] * 100 for row in history]
    axes.plot(x, y, "o-", color=BLUE, label="while adapting (a few held-out rows)")
    low, high = (q * 100 for q in results["ci95"]["gap_closed"])
    final = results["gap_closed"] * 100
    axes.errorbar(
        [x[-1]], [final], yerr=[[final - low], [high - final]], fmt="s", color=ORANGE, capsize=4,
        label=f"all held-out rows: {final:.1f} % (95 % interval)",
    )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.annotate("spliced model", (0, 0), xytext=(4, 4), textcoords="offset points", color=GREY, fontsize=9)
    axes.set_xlabel("tokens of adaptation")
    axes.set_ylabel("share of the cross-entropy gap closed (%)")
    axes.set_title(f"Gap of {results['ce_gap']:.3f} nats between the original and the spliced model", fontsize=11)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
