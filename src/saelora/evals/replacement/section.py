"""What replacing MLPs by transcoders costs: the section of --parts replacement."""

from collections.abc import Sequence
from typing import Any, Literal

from saelora.evals.replacement.result import ReplacementResult, Step
from saelora.evals.variant import Variant
from saelora.reporting.page import charts
from saelora.reporting.page.charts import Series, style
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import (
    Figure,
    Section,
    Table,
    by_run,
    estimates,
    measured,
    named,
    names_of,
    notes,
    row_of,
    shared_names,
)

Found = Sequence[tuple[int, Run, ReplacementResult]]
_VARIANTS = (Variant.SPLICED, Variant.ADAPTED)
_MEASURES: dict[Literal["kl", "ce"], tuple[str, str]] = {
    "kl": ("KL divergence from the original by how many MLPs are replaced.", "KL to the original (nats)"),
    "ce": ("Cross entropy by how many MLPs are replaced.", "cross entropy (nats)"),
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Curves by mode, and each MLP alone; nothing where no run has transcoders of many layers or has measured it."""
    found = measured(runs, ReplacementResult)
    if not found and not any(run.manifest.config.get("transcoders") for run in runs):
        return []
    figures = [figure for key in _MEASURES if (figure := _curves(runs, found, key))]
    figures += [figure] if (figure := _alone(runs, found)) else []
    about = (
        "What the model loses where transcoders stand for its MLPs. Each set of layers holds the smaller ones, evenly "
        "spread. Cascading transcoders read the replaced stream, as in a model that runs on them; parallel ones read "
        "the original's stream."
    )
    table = _table(runs, found)
    tables = [table] if table.rows else []
    told = notes(runs, "replacement")
    return [Section("replacement", "Replacement", about, told, figures, tables, measured=bool(found))]


def _curves(runs: Sequence[Run], found: Found, key: Literal["kl", "ce"]) -> Figure | None:
    series, rows = [], []
    for i, run, result in found:
        for j, (mode, steps) in enumerate(result.curves.items()):
            for k, variant in enumerate(_VARIANTS):
                kept = [step for step in steps if variant in step.ce]
                if not kept:
                    continue
                look = style(i, 2 * j + k) if len(runs) > 1 else style(j, k)
                values = estimates([getattr(step, key)[variant] for step in kept])
                name = named(runs, run, f"{mode}, {names_of(run, 'replacement')[variant]}")
                series.append(Series(name, [step.n_replaced for step in kept], *values, style=look))
            rows += [row_of(runs, run, [mode, *_values(step, key)]) for step in steps]
    if not series:
        return None
    told, y = _MEASURES[key]
    levels = [("original", float(result.ce_base["value"] or 0)) for _, _, result in found[:1]] if key == "ce" else []
    name = f"replacement-{key}"
    called = shared_names(runs, "replacement")
    columns = [("mode", "text"), ("MLPs replaced", "count"), *((called[v], "nats") for v in _VARIANTS)]
    svg = charts.lines(series, name, "MLPs replaced", y, zero=key == "kl", levels=levels)
    return Figure(name, told, svg, Table(told[:-1], by_run(runs, columns), rows))


def _values(step: Step, key: Literal["kl", "ce"]) -> list[Any]:
    return [step.n_replaced, *(getattr(step, key).get(variant) for variant in _VARIANTS)]


def _alone(runs: Sequence[Run], found: Found) -> Figure | None:
    series, rows = [], []
    for i, run, result in found:
        if result.alone:
            values = estimates([each.kl for each in result.alone])
            name = named(runs, run, "one MLP replaced")
            series.append(Series(name, [each.layer for each in result.alone], *values, style=style(i)))
            rows += [row_of(runs, run, [e.layer, e.rise, e.kl, e.top1]) for e in result.alone]
    if not series:
        return None
    told = "What each MLP costs alone, without an adapter."
    columns = [("layer", "text"), ("rise of cross entropy", "nats"), ("KL", "nats"), ("top-1 agreement", "share")]
    svg = charts.lines(series, "replacement-alone", "layer", "KL to the original (nats)", zero=True)
    return Figure("replacement-alone", told, svg, Table(told[:-1], by_run(runs, columns), rows))


def _table(runs: Sequence[Run], found: Found) -> Table:
    called = shared_names(runs, "replacement")
    columns = [("mode", "text"), ("MLPs replaced", "count"), ("layers", "text")]
    columns += [(f"top-1 agreement, {called[v]}", "share") for v in _VARIANTS] + [("gap closed", "share")]
    rows = []
    for _, run, result in found:
        for mode, steps in result.curves.items():
            for step in steps:
                values = [mode, step.n_replaced, step.layers, *(step.top1.get(v) for v in _VARIANTS), step.gap_closed]
                rows.append(row_of(runs, run, values))
    return Table("Agreement and gap closed, by MLPs replaced", by_run(runs, columns), rows)
