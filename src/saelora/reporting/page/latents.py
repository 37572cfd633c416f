"""Which latents change most through the adaptation and which fire most, from what ``saelora open`` has counted."""

from collections.abc import Sequence
from typing import Any

from saelora.reporting.counted import CountedLatent, CountedPassage, CountedSAE
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import Note, Section, Shaded, Table, by_run, quoted, row_of, shaded, written

ORDERS = {
    "helped": "Where the adaptation helps most",
    "hurt": "Where the adaptation hurts most",
    "changed": "Whose density the adaptation changes most",
    "strongest": "The strongest",
}
_SAE = ("SAE", "text")
_COLUMNS = [("latent", "text"), ("strongest on", "text"), ("effect", "nats"), ("density", "share")]
_COLUMNS += [("density, spliced", "share"), ("largest activation", "number"), ("fires", "count")]


def section(runs: Sequence[Run]) -> Section:
    """Tables of the first latents of each order, and their passages."""
    notes, tables, passages = [], [], []
    for run in runs:
        if run.counted is None:
            notes.append(_missing(run))
            continue
        notes.append(Note(run, [_found(hookpoint, sae) for hookpoint, sae in run.counted.saes.items()]))
        for hookpoint, sae in run.counted.saes.items():
            where = f"{run.label}, {hookpoint}" if len(runs) > 1 else hookpoint
            passages.append((where, [(own.latent, _passages(own.passages)) for own in sae.latents]))
    several = any(run.counted is not None and len(run.counted.saes) > 1 for run in runs)
    for order, told in ORDERS.items():
        rows = [row_of(runs, run, row if several else row[1:]) for run in runs for row in _rows(run, order)]
        if rows:
            tables.append(Table(told, by_run(runs, [_SAE, *_COLUMNS] if several else _COLUMNS), rows))
    about = (
        "Counted on held-out text. Effect: mean of KL(original ‖ adapted) − KL(original ‖ spliced) where the latent "
        "fires, in nats per prediction; below 0 the adaptation helps there. Density: share of tokens at which it "
        "fires. The first of so many latents are partly so by chance where they fire few times."
    )
    return Section("latents", "Latents", about, notes, tables=tables, extra=passages, measured=bool(tables))


def _missing(run: Run) -> Note:
    told = "Not counted on this machine yet: saelora open it, look at Latents there once, and make this page again"
    return Note(run, told=told, command=f"saelora open {quoted(run)}")


def _rows(run: Run, order: str) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for hookpoint, sae in run.counted.saes.items() if run.counted else ():
        by_number = {own.latent: own for own in sae.latents}
        for own in (by_number[i] for i in sae.orders.get(order, []) if i in by_number):
            figures = [own.effect, own.density, own.density_spliced, own.most, own.n]
            rows.append([hookpoint, own.latent, _strongest_on(own), *figures])
    return rows


def _strongest_on(own: CountedLatent) -> str:
    peaks = [each.tokens[each.values.index(max(each.values))] for each in own.passages if each.values]
    return " ".join(dict.fromkeys(f"“{token}”" for token in peaks))


def _found(hookpoint: str, sae: CountedSAE) -> str:
    told = f"{hookpoint}: {sae.n_latents:,} latents on {sae.n_tokens:,} tokens, {sae.n_silent:,} never fire there"
    helped = next((own for own in sae.latents if own.latent in sae.orders.get("helped", [])[:1]), None)
    if helped is None or helped.effect is None:
        return f"{told}."
    on = f", on {_strongest_on(helped)}" if helped.passages else ""
    effect = f"{written(helped.effect, 'nats')} nats over {helped.n:,} predictions{on}"
    return f"{told}; the adaptation helps most at latent {helped.latent} ({effect})."


def _passages(passages: Sequence[CountedPassage]) -> list[Shaded]:
    top = max((value for each in passages for value in each.values), default=0.0) or 1.0
    made = []
    for each in passages:
        focus = each.values.index(max(each.values)) if each.values else None
        made.append(shaded(each.tokens, each.values, focus, top))
    return made
