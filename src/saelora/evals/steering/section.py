"""What latents stand for and what steering by them does: the section of --parts steering."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saelora.evals.steering.result import Effect, Latent, Pooled, Shift, Steering
from saelora.reporting.page import charts
from saelora.reporting.page.charts import Series, style
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import (
    Figure,
    Section,
    Shaded,
    Table,
    by_run,
    cell,
    estimates,
    measured,
    named,
    notes,
    row_of,
    shaded,
)

_TEXTS = ("positives", "negatives")
Found = Sequence[tuple[int, Run, Steering]]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Effects by latent and method, pooled effects, and the latents with their top passages and samples."""
    found = measured(runs, Steering)
    methods = list(dict.fromkeys(method for _, _, r in found for method in r.methods))
    figures = [figure for method in methods if (figure := _figure(runs, found, method))]
    tables = [table for table in (_pooled(runs, found), _effects(runs, found)) if table.rows]
    about = (
        "The model is steered along a latent's direction, the splice taken out, while it reads texts in which the "
        "latent fires (positives) and others (negatives). Effect: change of these texts' log-probability, in nats per "
        "token. Difference: effect in the adapted model minus effect in the original one."
    )
    return [
        Section(
            "steering",
            "Latents and steering",
            about,
            notes(runs, "steering"),
            figures,
            tables,
            extra=[(run, [_shown(own) for own in result.latents], result) for _, run, result in found],
            short="Steering",
            measured=bool(found),
        )
    ]


def _figure(runs: Sequence[Run], found: Found, method: str) -> Figure | None:
    series, rows = [], []
    labels = list(dict.fromkeys(str(own.latent) for _, _, r in found for own in r.latents if method in own.methods))
    for i, run, result in found:
        latents = [own for own in result.latents if method in own.methods]
        for j, texts in enumerate(_TEXTS):
            changes = [_shift(own.methods[method], texts).difference_raw for own in latents]
            at = [labels.index(str(own.latent)) for own in latents]
            look = {**(style(i) if len(runs) > 1 else style(j)), "marker": "os"[j]}
            look["markerfacecolor"] = look["color"] if j == 0 else "none"
            series.append(Series(named(runs, run, texts), at, *estimates(changes), style=look))
            rows += [row_of(runs, run, [own.latent, texts, c]) for own, c in zip(latents, changes, strict=True)]
    if not labels:
        return None
    columns = [("latent", "text"), ("texts", "text"), ("difference", "number")]
    told = (
        f"Steering by method “{method}”: effect in the adapted model minus effect in the original one, with intervals."
    )
    name = f"steering-{charts.slug(method)}"
    svg = charts.dots([f"latent {label}" for label in labels], series, name, "difference of effects (nats per token)")
    return Figure(name, told, svg, Table(f"Steering, {method}: difference of effects", by_run(runs, columns), rows))


def _pooled(runs: Sequence[Run], found: Found) -> Table:
    columns = [("method", "text"), ("texts", "text"), ("original", "number"), ("adapted", "number")]
    columns += [("difference", "number"), ("difference, normalised", "number")]
    rows = []
    for _, run, result in found:
        for method, pooled in result.pooled.items():
            for texts in _TEXTS:
                rows.append(row_of(runs, run, [method, texts, *_told(_shift(pooled, texts))]))
    return Table("All latents together", by_run(runs, columns), rows)


def _effects(runs: Sequence[Run], found: Found) -> Table:
    columns = [("latent", "text"), ("method", "text"), ("texts", "text"), ("alpha", "number"), ("original", "number")]
    columns += [("adapted", "number"), ("difference", "number"), ("normalised", "number")]
    rows = []
    for _, run, result in found:
        for own in result.latents:
            for method, effect in own.methods.items():
                for texts in _TEXTS:
                    told = _told(_shift(effect, texts))
                    rows.append(row_of(runs, run, [own.latent, method, texts, effect.alpha, *told]))
    return Table("Effects of steering by latent, with intervals", by_run(runs, columns), rows, folded=True)


def _shift(effect: Effect | Pooled, texts: str) -> Shift:
    return effect.positives if texts == "positives" else effect.negatives


def _told(shift: Shift) -> list[Any]:
    return [shift.base, shift.adapted, shift.difference_raw, shift.difference_normalised]


@dataclass(frozen=True)
class Shown:
    """A latent as the template shows it.

    Args:
        passages: strongest first, each with its peak and its tokens as (text, shade of 5, whether it is the focus).
    """

    latent: int
    facts: list[tuple[str, str]]
    n: dict[str, int]
    passages: list[Shaded]
    samples: list[dict[str, object]]


def _shown(own: Latent) -> Shown:
    strongest = max((a for p in own.top_passages for a in p.activations), default=0.0) or 1.0
    passages = [shaded(each.tokens, each.activations, each.focus, strongest) for each in own.top_passages]
    facts = [("firing rate", cell(own.rate, "share")), ("selectivity", cell(own.selectivity, "number"))]
    facts += [("largest activation", cell(own.max_activation, "number")), ("how", cell(own.how, "text"))]
    samples = [vars(sample) for sample in own.samples]
    return Shown(own.latent, [(told, found.text) for told, found in facts], vars(own.n), passages, samples)
