"""Whether the adapted model reads its SAE: the section of --parts faithfulness."""

from collections.abc import Sequence
from typing import Literal

from saelora.evals.estimate import Estimate
from saelora.evals.faithfulness.result import AttentionLayer, Faithfulness, Intervention, Reliance
from saelora.evals.variant import SIDE_BY_SIDE
from saelora.reporting.page import charts
from saelora.reporting.page.charts import Series, style
from saelora.reporting.page.losses import SPREAD
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

Found = Sequence[tuple[int, Run, Faithfulness]]
Order = Literal["random", "top"]
_ORDERS: dict[Order, str] = {"random": "random ones among those that fire", "top": "those of most activation"}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Ablations, attention to positions that the SAE leaves alone, another SAE, and the SAE taken out."""
    found = measured(runs, Faithfulness)
    drawn = (*(_ablation(runs, found, order) for order in _ORDERS), _attention(runs, found))
    tables = [table for table in (_checks(runs, found), _other(runs, found)) if table.rows]
    about = (
        "An adapter could win loss back by going round the SAE instead of reading it. Rise: cross entropy with the "
        "intervention minus cross entropy without. A model that reads its SAE suffers when its latents are tampered "
        "with."
    )
    return [
        Section(
            "faithfulness",
            "Does it read its SAE?",
            about,
            notes(runs, "faithfulness"),
            [figure for figure in drawn if figure],
            tables,
            short="Faithfulness",
            measured=bool(found),
        )
    ]


def _ablation(runs: Sequence[Run], found: Found, order: Order) -> Figure | None:
    series, rows = [], []
    for i, run, result in found:
        steps = result.ablation.random if order == "random" else result.ablation.top
        for j, (name, rises) in enumerate(
            (("spliced", [step.rise_sae for step in steps]), ("adapted", [step.rise_adapted for step in steps]))
        ):
            look = style(i, j) if len(runs) > 1 else style(1 - j)
            k = [step.k for step in steps]
            series.append(Series(named(runs, run, name), k, *estimates(rises), style=look))
        rows += [row_of(runs, run, [s.k, s.share, s.rise_sae, s.rise_adapted, s.ratio]) for s in steps]
    if not rows:
        return None
    columns = [
        ("latents set to 0", "count"),
        ("share of activation", "share"),
        ("rise, spliced", "nats"),
        ("rise, adapted", "nats"),
    ]
    columns += [("ratio", "number")]
    told = f"What it costs to set k latents at every hookpoint to 0: {_ORDERS[order]}."
    name = f"ablation-{order}"
    svg = charts.lines(series, name, "latents set to 0", "rise of cross entropy (nats)", zero=True, log_x=True)
    return Figure(name, told, svg, Table(f"Ablation, {_ORDERS[order]}", by_run(runs, columns), rows))


def _attention(runs: Sequence[Run], found: Found) -> Figure | None:
    series, rows = [], []
    for i, run, result in found:
        if (attention := result.exempt.attention) is None:
            continue
        layers = attention.layers
        for j, variant in enumerate(SIDE_BY_SIDE):
            look = style(i, j) if len(runs) > 1 else style((2, 1, 0)[j])
            values = estimates([_shares(layer)[j] for layer in layers])
            name = named(runs, run, names_of(run, "faithfulness")[variant])
            series.append(Series(name, [layer.layer for layer in layers], *values, style={**look, "markersize": 3.5}))
        rows += [row_of(runs, run, [layer.layer, *_shares(layer)]) for layer in layers]
        if layers:
            rows.append(row_of(runs, run, ["all", *(attention.mean[variant] for variant in SIDE_BY_SIDE)]))
    if not rows:
        return None
    called = shared_names(runs, "faithfulness")
    columns = [("layer", "text"), *((called[variant], "number") for variant in SIDE_BY_SIDE)]
    told = "Attention that replaced positions pay to those which are left alone: a way round it would raise this."
    svg = charts.lines(series, "attention", "layer", "share of attention")
    return Figure("attention", told, svg, Table("Attention to exempt positions", by_run(runs, columns), rows))


def _shares(layer: AttentionLayer) -> tuple[Estimate, ...]:
    """In the order of SIDE_BY_SIDE."""
    return layer.base, layer.sae, layer.adapted


def _checks(runs: Sequence[Run], found: Found) -> Table:
    columns = [("intervention", "text"), ("CE spliced", "nats"), ("CE adapted", "nats")]
    columns += [("rise, spliced", "nats"), ("rise, adapted", "nats"), ("reliance", "number")]
    rows = []
    for _, run, result in found:
        checks: dict[str, Intervention | None] = {
            "latents of other positions (shuffled)": result.shuffled,
            "no latents at all (zeroed)": result.zeroed,
            "exempt positions replaced too": result.exempt.spliced_too,
            "of these, only those after a row's first": result.exempt.after_first,
        }
        for told, c in checks.items():
            if c is not None:
                reliance = c.reliance if isinstance(c, Reliance) else None
                values = [told, c.ce_sae, c.ce_adapted, c.rise_sae, c.rise_adapted, reliance]
                rows.append(row_of(runs, run, values))
        out = result.sae_taken_out
        clean = [out.ce_base, out.ce_adapted_clean, None, out.harm, None]
        rows.append(row_of(runs, run, ["splice taken out (beside the original model)", *clean]))
    return Table("Interventions", by_run(runs, columns), rows)


def _other(runs: Sequence[Run], found: Found) -> Table:
    rows = []
    for _, run, result in found:
        if (o := result.other_sae) is not None:
            values = [o.ref, o.fvu, o.fvu_rest, o.relative_error, o.ce_sae, o.ce_adapted, o.gap_closed]
            rows.append(row_of(runs, run, values))
    columns = [("SAE", "text"), ("FVU", "number"), SPREAD["fvu_rest"], SPREAD["relative_error"]]
    columns += [("CE spliced", "nats"), ("CE adapted", "nats"), ("gap closed", "share")]
    return Table("Another SAE at the same place, which the adapter never saw", by_run(runs, columns), rows)
