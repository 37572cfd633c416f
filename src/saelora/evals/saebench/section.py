"""SAEBench's figures: the section of --parts saebench."""

from collections.abc import Sequence

from saelora.evals.saebench.result import SAEBench
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import Section, Table, by_run, measured, notes, row_of


def sections(runs: Sequence[Run]) -> list[Section]:
    """SAEBench's evaluations, those that the adapter cannot change among them."""
    found = measured(runs, SAEBench)
    columns = [
        ("evaluation", "text"),
        ("hookpoint", "text"),
        ("metric", "text"),
        ("original model", "number"),
        ("adapted model", "number"),
    ]
    columns += [("can change", "text")]
    rows = [
        row_of(runs, run, [m.eval, m.hookpoint, m.metric, m.base, m.adapted, m.can_change])
        for _, run, r in found
        for m in r.metrics
    ]
    left_out = [row_of(runs, run, [s.eval, s.why]) for _, run, r in found for s in r.skipped]
    tables = [
        Table("Metrics", by_run(runs, columns), rows),
        Table("Left out", by_run(runs, [("evaluation", "text"), ("why", "text")]), left_out),
    ]
    told = []
    for _, run, r in found:
        facts = [("data", r.data), ("SAEBench", r.sae_bench), ("command", r.command)]
        facts += [("cannot change", ", ".join(r.cannot_change)), ("why", r.why)]
        told += [row_of(runs, run, [name, value]) for name, value in facts if value]
    tables.append(Table("How it was measured", by_run(runs, [("what", "text"), ("value", "text")]), told, folded=True))
    about = "SAEBench judges the SAE by its latents on the original model and on the adapted one."
    return [
        Section(
            "saebench",
            "SAEBench",
            about,
            notes(runs, "saebench"),
            tables=[table for table in tables if table.rows],
            measured=bool(found),
        )
    ]
