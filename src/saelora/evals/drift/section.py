"""How far the layers' outputs move from the original's: the section of --parts drift."""

from collections.abc import Sequence
from typing import Any

from saelora.report.page import charts
from saelora.report.page.charts import Series, style
from saelora.report.page.read import Run
from saelora.report.page.view import Figure, Section, Table, by_run, estimates, measured, named, notes, row_of
from saelora.report.text import ARM_NAMES

_MEASURES = {
    "relative_l2": (
        "Distance of each layer's output from the original's, relative to its length.",
        "relative L2 distance",
    ),
    "cosine_distance": ("Change of direction of each layer's output.", "cosine distance"),
}
_ARMS = ("sae", "adapted", "adapted_clean")


def sections(runs: Sequence[Run]) -> list[Section]:
    """Per-layer distances, and what became of the SAEs' latents."""
    found = measured(runs, "drift")
    figures = [figure for key in _MEASURES if (figure := _figure(runs, found, key))]
    tables = [table for table in (_differences(runs, found), _latents(runs, found)) if table.rows]
    about = (
        "How far each layer's output is from the clean original's, at the positions that the SAE replaces. A distance "
        "of 0 is the original itself; the SAE taken out shows what an adapter alone changes."
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


def _figure(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]], key: str) -> Figure | None:
    series, rows = [], []
    told, y = _MEASURES[key]
    for i, run, result in found:
        layers = [layer for layer in result.get("layers", []) if key in layer]
        for j, arm in enumerate(_ARMS):
            name = named(runs, run, ARM_NAMES[arm])
            look = style(i, j) if len(runs) > 1 else style(j)
            values = estimates([layer[key].get(arm) for layer in layers])
            series.append(
                Series(name, [layer["layer"] for layer in layers], *values, style={**look, "markersize": 3.5})
            )
        rows += [row_of(runs, run, [layer["layer"], *(layer[key].get(arm) for arm in _ARMS)]) for layer in layers]
    if not rows:
        return None
    columns = [("layer", "text"), *((ARM_NAMES[arm], "number") for arm in _ARMS)]
    svg = charts.lines(series, key.replace("_", "-"), "layer", y, zero=True)
    return Figure(key.replace("_", "-"), told, svg, Table(f"{told[:-1]}, by layer", by_run(runs, columns), rows))


def _differences(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Table:
    columns = [("layer", "text"), *((f"L2, {ARM_NAMES[arm]}", "number") for arm in _ARMS)]
    columns += [("L2, adapted − spliced", "number"), ("cosine distance, adapted − spliced", "number")]
    rows = []
    for _, run, result in found:
        for layer in result.get("layers", []):
            distances = [layer.get("l2", {}).get(arm) for arm in _ARMS]
            values = [layer["layer"], *distances, layer.get("l2_difference"), layer.get("cosine_difference")]
            rows.append(row_of(runs, run, values))
    return Table("L2 distances by layer, and paired differences", by_run(runs, columns), rows, folded=True)


def _latents(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Table:
    columns = [
        ("hookpoint", "text"),
        ("identical", "text"),
        ("largest difference", "number"),
        ("Jaccard index", "number"),
    ]
    columns += [("correlation of rates", "number"), ("L0 original", "number"), ("L0 adapted", "number")]
    arms = ("base", "adapted")
    for name in ("FVU", "FVU without the largest 0.1 % of tokens", "error of a token, median"):
        columns += [(f"{name}, {arm}", "number") for arm in ("original", "adapted")]
    rows = []
    for _, run, result in found:
        for hookpoint, own in result.get("latents", {}).items():
            values = [hookpoint, own.get("identical"), own.get("max_abs_difference"), own.get("jaccard")]
            values += [own.get("rate_correlation"), *(own.get("l0", {}).get(arm) for arm in arms)]
            keys = ("fvu", "fvu_rest", "relative_error")
            rows.append(row_of(runs, run, [*values, *(own.get(key, {}).get(arm) for key in keys for arm in arms)]))
    return Table("The SAEs' latents, original and adapted model", by_run(runs, columns), rows)
