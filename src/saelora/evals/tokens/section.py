"""Where on the text the adapter helps and hurts: the section of --parts tokens."""

from collections.abc import Sequence
from typing import Any

from saelora.evals.tokens import text
from saelora.report.page import charts
from saelora.report.page.charts import Series, style
from saelora.report.page.read import Run
from saelora.report.page.view import Figure, Section, Table, by_run, estimates, measured, named, notes, row_of

_GROUPS = {
    "by_position": ("tokens before", "By position in the row: tokens before the predicted one."),
    "by_frequency": ("frequency, per million", "By how often the predicted token occurs, per million tokens."),
    "by_recon_error": ("reconstruction error", "By the SAE's relative squared error at the predicting position."),
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Histogram, and the change by kinds of token."""
    found = measured(runs, "tokens")
    figures = [
        figure for figure in (_histogram(runs, found), *(_groups(runs, found, key) for key in _GROUPS)) if figure
    ]
    tables = [_quantiles(runs, found)] if found else []
    about = "Change: loss of the adapted model minus loss of the spliced one, token by token; below 0 it helped."
    return [
        Section(
            "tokens",
            "Token by token",
            about,
            notes(runs, "tokens"),
            figures,
            tables,
            short="Tokens",
            measured=bool(found),
        ),
        *_text(runs),
    ]


def _text(runs: Sequence[Run]) -> list[Section]:
    """What the page's script shows token by token; nothing where no run has passages."""
    payload = text.payload(runs)
    about = "Every token, coloured by what happened to its prediction."
    return [Section("text", "Read the text", about, short="Text", payload=payload)] if payload["runs"] else []


def _histogram(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Figure | None:
    found = [each for each in found if "histogram" in each[2]]
    if not found:
        return None
    rows, groups = [], []
    for _, run, result in found:
        counts, n = result["histogram"], max(1, result.get("n_predictions", 1))
        up, down = ([100 * value / n for value in counts[side]] for side in ("helped", "hurt"))
        groups.append((run.label, up, down))
        edges = counts["edges"]
        rows.append(row_of(runs, run, [0, edges[0], counts.get("helped_below"), counts.get("hurt_below")]))
        for i, (helped, hurt) in enumerate(zip(counts["helped"], counts["hurt"], strict=True)):
            rows.append(row_of(runs, run, [edges[i], edges[i + 1], helped, hurt]))
        rows.append(row_of(runs, run, [edges[-1], None, counts.get("helped_above"), counts.get("hurt_above")]))
    edges = found[0][2]["histogram"]["edges"]
    groups = [each for each, (_, _, result) in zip(groups, found, strict=True) if result["histogram"]["edges"] == edges]
    columns = [("from (nats)", "number"), ("to (nats)", "number"), ("tokens helped", "count"), ("tokens hurt", "count")]
    told = "How many tokens changed by how much: helped ones upwards, hurt ones downwards, on a logarithmic axis."
    table = Table("Histogram of the change in loss", by_run(runs, columns), rows)
    return Figure("token-histogram", told, charts.histogram(edges, groups, "token-histogram"), table)


def _groups(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]], key: str) -> Figure | None:
    found = [each for each in found if each[2].get(key)]
    if not found:
        return None
    what, told = _GROUPS[key]
    labels = list(dict.fromkeys(str(group.get("label")) for _, _, result in found for group in result[key]))
    series, rows = [], []
    for i, run, result in found:
        at = [labels.index(str(group.get("label"))) for group in result[key]]
        changes = estimates([group.get("change") for group in result[key]])
        series.append(Series(named(runs, run, ""), at, *changes, style=style(i)))
        keys = ("label", "n", "ce_base", "ce_sae", "ce_adapted", "change", "gap_closed")
        rows += [row_of(runs, run, [group.get(name) for name in keys]) for group in result[key]]
    columns = [(what, "text"), ("tokens", "count"), ("CE original", "nats"), ("CE spliced", "nats")]
    columns += [("CE adapted", "nats"), ("change", "nats"), ("gap closed", "share")]
    if key == "by_frequency":
        sources = dict.fromkeys(str(r["frequency_counted_on"]) for _, _, r in found if r.get("frequency_counted_on"))
        told += f" Counted on: {'; '.join(sources)}." if sources else ""
    name = key.replace("_", "-")
    svg = charts.dots(labels, series, name, "change in loss (nats; left of 0: helped)")
    return Figure(name, told, svg, Table(f"Change in loss by {what}", by_run(runs, columns), rows))


def _quantiles(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Table:
    rows = []
    levels: list[str] = []
    for _, _, result in found:
        for key in ("change", "cost"):
            levels += [q for q in result.get(key, {}).get("quantiles", {}) if q not in levels]
    for _, run, result in found:
        for key, told in (("change", "change (adapted − spliced)"), ("cost", "cost (spliced − original)")):
            if key in result:
                quantiles = result[key].get("quantiles", {})
                values = [result[key].get("mean"), *(quantiles.get(level) for level in levels)]
                rows.append(row_of(runs, run, [told, *values]))
    columns = [("quantity", "text"), ("mean", "nats"), *((f"{float(level):.0%}", "nats") for level in levels)]
    return Table("Mean and quantiles over tokens, in nats", by_run(runs, columns), rows)
