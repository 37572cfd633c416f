"""How far the layers' outputs move from the original's: the section of --parts drift."""

from collections.abc import Sequence
from typing import Any, Literal

from saelora.evals.drift.result import AWAY, Drift
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

_MEASURES: dict[Literal["relative_l2", "cosine_distance"], tuple[str, str]] = {
    "relative_l2": (
        "Distance of each layer's output from the original's, relative to its length.",
        "relative L2 distance",
    ),
    "cosine_distance": ("Change of direction of each layer's output.", "cosine distance"),
}
Found = Sequence[tuple[int, Run, Drift]]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Per-layer distances, and what became of the SAEs' latents."""
    found = measured(runs, Drift)
    figures = [figure for key in _MEASURES if (figure := _figure(runs, found, key))]
    tables = [table for table in (_differences(runs, found), _latents(runs, found)) if table.rows]
    about = (
        "How far each layer's output is from the clean original's, at the positions that are replaced. A distance "
        "of 0 is the original itself; the splice taken out shows what an adapter alone changes."
    )
    return [
        Section(
            "drift",
            "Layer by layer",
            about,
            notes(runs, "drift"),
            figures,
            tables,
            short="Layers",
            measured=bool(found),
        )
    ]


def _figure(runs: Sequence[Run], found: Found, key: Literal["relative_l2", "cosine_distance"]) -> Figure | None:
    series, rows = [], []
    told, y = _MEASURES[key]
    for i, run, result in found:
        by_layer = [(layer.layer, getattr(layer, key)) for layer in result.layers]
        for j, variant in enumerate(AWAY):
            name = named(runs, run, names_of(run, "drift")[variant])
            look = style(i, j) if len(runs) > 1 else style(j)
            values = estimates([distances[variant] for _, distances in by_layer])
            series.append(Series(name, [i for i, _ in by_layer], *values, style={**look, "markersize": 3.5}))
        rows += [row_of(runs, run, [i, *(distances[variant] for variant in AWAY)]) for i, distances in by_layer]
    if not rows:
        return None
    called = shared_names(runs, "drift")
    columns = [("layer", "text"), *((called[arm], "number") for arm in AWAY)]
    svg = charts.lines(series, key.replace("_", "-"), "layer", y, zero=True)
    return Figure(key.replace("_", "-"), told, svg, Table(f"{told[:-1]}, by layer", by_run(runs, columns), rows))


def _differences(runs: Sequence[Run], found: Found) -> Table:
    called = shared_names(runs, "drift")
    columns = [("layer", "text"), *((f"L2, {called[arm]}", "number") for arm in AWAY)]
    columns += [("L2, adapted − spliced", "number"), ("cosine distance, adapted − spliced", "number")]
    rows = []
    for _, run, result in found:
        for layer in result.layers:
            distances = [layer.l2[variant] for variant in AWAY]
            values = [layer.layer, *distances, layer.l2_difference, layer.cosine_difference]
            rows.append(row_of(runs, run, values))
    return Table("L2 distances by layer, and paired differences", by_run(runs, columns), rows, folded=True)


def _latents(runs: Sequence[Run], found: Found) -> Table:
    columns = [
        ("hookpoint", "text"),
        ("identical", "text"),
        ("largest difference", "number"),
        ("Jaccard index", "number"),
    ]
    columns += [("correlation of rates", "number"), ("L0 original", "number"), ("L0 adapted", "number")]
    for name in ("FVU", "FVU without the largest 0.1 % of tokens", "error of a token, median"):
        columns += [(f"{name}, {arm}", "number") for arm in ("original", "adapted")]
    rows = []
    for _, run, result in found:
        for hookpoint, own in result.latents.items():
            values: list[Any] = [hookpoint, own.identical, own.max_abs_difference, own.jaccard, own.rate_correlation]
            for of in (own.l0, own.fvu, own.fvu_rest, own.relative_error):
                values += [None, None] if of is None else [of[Variant.BASE], of[Variant.ADAPTED]]
            rows.append(row_of(runs, run, values))
    return Table("Latents, original and adapted model", by_run(runs, columns), rows)
