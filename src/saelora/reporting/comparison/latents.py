"""What each way of a comparison did to the SAE and to the model beyond the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saelora.reporting.comparison.curves import finite, label_of_start
from saelora.reporting.comparison.equal import equal_tokens, main_group
from saelora.reporting.comparison.run import ComparisonRun

LATENT_CHANGE = (
    "fvu",
    "fvu_rest",
    "top_variance",
    "relative_error",
    "l0",
    "dead_frac",
    "jaccard",
    "rate_correlation",
    "clean_cost",
)


@dataclass(frozen=True)
class LeftBehind:
    """What one way did: means over its seeds.

    Args:
        figures: by LATENT_CHANGE. fvu to dead_frac are of the SAE in use (some are None in older files), jaccard and
            rate_correlation of its latents' firing before and after (None for SAEs from scratch), clean_cost the nats
            per token that the model without its SAE is worse than the original (None where it is the original).
    """

    name: str
    start: str | None
    budget: int
    n_seeds: int
    figures: dict[str, float | None]


def left_behind(runs: Sequence[ComparisonRun]) -> list[LeftBehind]:
    """What each way did to the SAE and to the model beyond the loss: means over seeds at its largest budget.

    A method stands with the start at which most methods are compared, if it was run from there.
    """
    group = main_group(equal_tokens(runs))
    main = group[0].start if group else None
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        own = [run for run in runs if run.name == name and finite(run.final.ce)]
        if not own:
            continue
        starts = [label_of_start(run) for run in own]
        start = main if main in starts else starts[-1]
        here = [run for run in own if label_of_start(run) == start]
        budget = max(run.budget for run in here)
        here = [run for run in here if run.budget == budget]
        figures = {key: mean([_change(run, key) for run in here]) for key in LATENT_CHANGE}
        rows.append(LeftBehind(name, start, budget, len(here), figures))
    return rows


def mean(values: Sequence[float | None]) -> float | None:
    """Of what is a number; None of nothing."""
    known = [value for value in values if value is not None and finite(value)]
    return math.fsum(known) / len(known) if known else None


def _change(run: ComparisonRun, key: str) -> float | None:
    final = run.final
    if key != "clean_cost":
        value: float | None = getattr(final, key)
        return value
    if run.kind == "sae" or final.ce_clean is None or not finite(final.ce_clean):
        return None
    return final.ce_clean - final.ce_base
