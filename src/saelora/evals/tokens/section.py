"""Where on the text the adapter helps and hurts: the section of --parts tokens."""

from collections.abc import Sequence
from typing import Literal

from saelora.evals.tokens import text
from saelora.evals.tokens.result import Group, Tokens
from saelora.reporting.page import charts
from saelora.reporting.page.charts import Series, style
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import Figure, Section, Table, by_run, estimates, measured, named, notes, row_of

Found = Sequence[tuple[int, Run, Tokens]]
Grouping = Literal["by_position", "by_frequency", "by_recon_error"]
_GROUPS: dict[Grouping, tuple[str, str]] = {
    "by_position": ("tokens before", "By position in the row: tokens before the predicted one."),
    "by_frequency": ("frequency, per million", "By how often the predicted token occurs, per million tokens."),
    "by_recon_error": (
        "reconstruction error",
        "By relative squared reconstruction error at the predicting position.",
    ),
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Histogram, and the change by kinds of token."""
    found = measured(runs, Tokens)
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
    n = sum(len(run["passages"]) for run in payload["runs"])
    gist = [("", f"{n} passages: those helped most, those hurt most, and whole rows")]
    section = Section("text", "Read the text", about, short="Text", payload=payload, gist=gist)
    return [section] if payload["runs"] else []


def _histogram(runs: Sequence[Run], found: Found) -> Figure | None:
    if not found:
        return None
    rows, groups = [], []
    for _, run, result in found:
        counts, n = result.histogram, max(1, result.n_predictions)
        up, down = ([100 * value / n for value in side] for side in (counts.helped, counts.hurt))
        groups.append((run.label, up, down))
        edges = counts.edges
        rows.append(row_of(runs, run, [0, edges[0], counts.helped_below, counts.hurt_below]))
        for i, (helped, hurt) in enumerate(zip(counts.helped, counts.hurt, strict=True)):
            rows.append(row_of(runs, run, [edges[i], edges[i + 1], helped, hurt]))
        rows.append(row_of(runs, run, [edges[-1], None, counts.helped_above, counts.hurt_above]))
    edges = found[0][2].histogram.edges
    groups = [each for each, (_, _, result) in zip(groups, found, strict=True) if result.histogram.edges == edges]
    columns = [("from (nats)", "number"), ("to (nats)", "number"), ("tokens helped", "count"), ("tokens hurt", "count")]
    told = "How many tokens changed by how much: helped ones upwards, hurt ones downwards, on a logarithmic axis."
    table = Table("Histogram of the change in loss", by_run(runs, columns), rows)
    return Figure("token-histogram", told, charts.histogram(edges, groups, "token-histogram"), table)


def _groups(runs: Sequence[Run], found: Found, key: Grouping) -> Figure | None:
    grouped: list[tuple[int, Run, list[Group]]] = [(i, run, getattr(result, key)) for i, run, result in found]
    grouped = [each for each in grouped if each[2]]
    if not grouped:
        return None
    what, told = _GROUPS[key]
    labels = list(dict.fromkeys(group.label for _, _, groups in grouped for group in groups))
    series, rows = [], []
    for i, run, groups in grouped:
        at = [labels.index(group.label) for group in groups]
        changes = estimates([group.change for group in groups])
        series.append(Series(named(runs, run, ""), at, *changes, style=style(i)))
        for g in groups:
            values = [g.label, g.n, g.ce_base, g.ce_sae, g.ce_adapted, g.change, g.gap_closed]
            rows.append(row_of(runs, run, values))
    columns = [(what, "text"), ("tokens", "count"), ("CE original", "nats"), ("CE spliced", "nats")]
    columns += [("CE adapted", "nats"), ("change", "nats"), ("gap closed", "share")]
    if key == "by_frequency":
        sources = dict.fromkeys(r.frequency_counted_on for _, _, r in found if r.by_frequency)
        told += f" Counted on: {'; '.join(sources)}." if sources else ""
    name = key.replace("_", "-")
    svg = charts.dots(labels, series, name, "change in loss (nats; left of 0: helped)")
    return Figure(name, told, svg, Table(f"Change in loss by {what}", by_run(runs, columns), rows))


def _quantiles(runs: Sequence[Run], found: Found) -> Table:
    rows = []
    levels: list[str] = []
    for _, _, result in found:
        for own in (result.change, result.cost):
            levels += [q for q in own.quantiles if q not in levels]
    for _, run, result in found:
        for own, told in ((result.change, "change (adapted − spliced)"), (result.cost, "cost (spliced − original)")):
            values = [own.mean, *(own.quantiles.get(level) for level in levels)]
            rows.append(row_of(runs, run, [told, *values]))
    columns = [("quantity", "text"), ("mean", "nats"), *((f"{float(level):.0%}", "nats") for level in levels)]
    return Table("Mean and quantiles over tokens, in nats", by_run(runs, columns), rows)
