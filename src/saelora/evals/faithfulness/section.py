"""Whether the adapted model reads its SAE: the section of --parts faithfulness."""

from collections.abc import Sequence
from typing import Any

from saelora.report.page import charts
from saelora.report.page.charts import Series, style
from saelora.report.page.losses import SPREAD
from saelora.report.page.read import Run
from saelora.report.page.view import Figure, Section, Table, by_run, estimates, measured, named, notes, row_of
from saelora.report.text import ARM_NAMES

_PAIR = (("rise_sae", "spliced"), ("rise_adapted", "adapted"))
_ORDERS = {"random": "random ones among those that fire", "top": "those of most activation"}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Ablations, attention to positions that the SAE leaves alone, another SAE, and the SAE taken out."""
    found = measured(runs, "faithfulness")
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


def _ablation(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]], order: str) -> Figure | None:
    series, rows = [], []
    for i, run, result in found:
        steps = (result.get("ablation") or {}).get(order) or []
        for j, (key, name) in enumerate(_PAIR):
            look = style(i, j) if len(runs) > 1 else style(1 - j)
            values = estimates([step.get(key) for step in steps])
            series.append(Series(named(runs, run, name), [step["k"] for step in steps], *values, style=look))
        keys = ("k", "share", "rise_sae", "rise_adapted", "ratio")
        rows += [row_of(runs, run, [step.get(key) for key in keys]) for step in steps]
    if not rows:
        return None
    columns = [
        ("latents set to 0", "count"),
        ("share of activation", "share"),
        ("rise, spliced", "nats"),
        ("rise, adapted", "nats"),
    ]
    columns += [("ratio", "number")]
    told = f"What it costs to set k latents of every SAE to 0: {_ORDERS[order]}."
    name = f"ablation-{order}"
    svg = charts.lines(series, name, "latents set to 0", "rise of cross entropy (nats)", zero=True, log_x=True)
    return Figure(name, told, svg, Table(f"Ablation, {_ORDERS[order]}", by_run(runs, columns), rows))


def _attention(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Figure | None:
    series, rows = [], []
    arms = ("base", "sae", "adapted")
    for i, run, result in found:
        attention = (result.get("exempt") or {}).get("attention") or {}
        layers = attention.get("layers") or []
        for j, arm in enumerate(arms):
            look = style(i, j) if len(runs) > 1 else style((2, 1, 0)[j])
            values = estimates([layer.get(arm) for layer in layers])
            name = named(runs, run, ARM_NAMES[arm])
            series.append(
                Series(name, [layer["layer"] for layer in layers], *values, style={**look, "markersize": 3.5})
            )
        rows += [row_of(runs, run, [layer["layer"], *(layer.get(arm) for arm in arms)]) for layer in layers]
        if layers and attention.get("mean"):
            rows.append(row_of(runs, run, ["all", *(attention["mean"].get(arm) for arm in arms)]))
    if not rows:
        return None
    columns = [("layer", "text"), *((ARM_NAMES[arm], "number") for arm in arms)]
    told = "Attention that replaced positions pay to those which the SAE leaves alone: a way round it would raise this."
    svg = charts.lines(series, "attention", "layer", "share of attention")
    return Figure("attention", told, svg, Table("Attention to exempt positions", by_run(runs, columns), rows))


def _checks(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Table:
    columns = [("intervention", "text"), ("CE spliced", "nats"), ("CE adapted", "nats")]
    columns += [("rise, spliced", "nats"), ("rise, adapted", "nats"), ("reliance", "number")]
    keys = ("ce_sae", "ce_adapted", "rise_sae", "rise_adapted", "reliance")
    rows = []
    for _, run, result in found:
        checks = {
            "latents of other positions (shuffled)": result.get("shuffled"),
            "no latents at all (zeroed)": result.get("zeroed"),
            "exempt positions replaced too": (result.get("exempt") or {}).get("spliced_too"),
            "of these, only those after a row's first": (result.get("exempt") or {}).get("after_first"),
        }
        rows += [row_of(runs, run, [told, *(c.get(key) for key in keys)]) for told, c in checks.items() if c]
        if out := result.get("sae_taken_out"):
            clean = [out.get("ce_base"), out.get("ce_adapted_clean"), None, out.get("harm"), None]
            rows.append(row_of(runs, run, ["SAE taken out (beside the original model)", *clean]))
    return Table("Interventions", by_run(runs, columns), rows)


def _other(runs: Sequence[Run], found: Sequence[tuple[int, Run, dict[str, Any]]]) -> Table:
    keys = ("ref", "fvu", "fvu_rest", "relative_error", "ce_sae", "ce_adapted", "gap_closed")
    rows = [row_of(runs, run, [r["other_sae"].get(key) for key in keys]) for _, run, r in found if r.get("other_sae")]
    columns = [("SAE", "text"), ("FVU", "number"), SPREAD["fvu_rest"], SPREAD["relative_error"]]
    columns += [("CE spliced", "nats"), ("CE adapted", "nats"), ("gap closed", "share")]
    return Table("Another SAE at the same place, which the adapter never saw", by_run(runs, columns), rows)
