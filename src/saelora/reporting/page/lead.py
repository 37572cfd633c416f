"""What a page begins with: the gain in one sentence and one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from saelora.reporting.best import best
from saelora.reporting.format import finite, one_line
from saelora.reporting.page import charts
from saelora.reporting.page.charts import Bar, GapBar
from saelora.reporting.page.losses import ends_of_left
from saelora.reporting.page.read import Run
from saelora.reporting.text import cost, has_gap, lead, warnings

ABOVE = "nats per token above the original model"


@dataclass(frozen=True)
class Lead:
    """The first screen.

    Args:
        picture: SVG; told: what it shows, in words.
        each: of several runs, the name, the sentence and the cost of each.
        more: further findings, folded.
    """

    sentence: str
    picture: str | None = None
    told: str = ""
    warnings: Sequence[str] = ()
    cost: str = ""
    each: Sequence[tuple[str, str, str]] = ()
    more: Sequence[str] = ()


def of_runs(runs: Sequence[Run]) -> Lead:
    """Of one run its own sentence; of several the best one's."""
    if len(runs) == 1:
        results = runs[0].results
        picture, told = _variants(runs[0])
        return Lead(lead(results), picture, told, warnings(results), cost(results))
    careful = [f"{one_line(run.label)}: {told}" for run in runs for told in warnings(run.results)]
    given = [(one_line(run.label), run.results) for run in runs]
    sentence = best(given, "runs", [run.about for run in runs])
    picture, told = _runs(runs)
    each = [(run.label, lead(run.results), cost(run.results)) for run in runs]
    return Lead(sentence, picture, told, careful, each=each)


def _variants(run: Run) -> tuple[str | None, str]:
    """Original, adapted and spliced, as bars above the original; whisker: the interval of what is left of the gap."""
    results = run.results
    base, spliced, adapted = results.ce_base, finite(results.ce_sae), finite(results.ce_adapted)
    if spliced is None:
        return None, ""
    bars = [Bar(f"original {base:.3f}", 0.0)]
    if adapted is not None:
        look = "worse" if adapted > spliced else "won"
        bars.append(Bar(f"adapted {adapted:.3f}", adapted - base, ends_of_left(results), look))
    bars.append(Bar(f"spliced {spliced:.3f}", spliced - base, look="left"))
    told = "Cross entropies, in nats per token, drawn above the original model's."
    if any(bar.interval for bar in bars):
        told += " The whisker is the 95 % interval of what is left of the gap."
    return charts.bars(bars, "lead", ABOVE), told


def _runs(runs: Sequence[Run]) -> tuple[str | None, str]:
    """Each run's gap, and what was won back of it."""
    bars = []
    for run in runs:
        base, spliced, adapted = run.results.ce_base, finite(run.results.ce_sae), finite(run.results.ce_adapted)
        if spliced is not None and adapted is not None:
            bars.append(GapBar(run.label, spliced - base, adapted - base, ends_of_left(run.results)))
    if not bars:
        return None, ""
    told = "Of each run the cost of its splice, from the original model (0) to the spliced one, and what was won back."
    if any(has_gap(run.results) for run in runs):
        told += " Whiskers are 95 % intervals."
    return charts.gap_bars(bars, "lead"), told
