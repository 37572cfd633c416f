"""SAEBench's figures: the section of --parts saebench."""

from collections.abc import Sequence

from saelora.report.page.read import Run
from saelora.report.page.view import Section, Table, by_run, measured, notes, row_of


def sections(runs: Sequence[Run]) -> list[Section]:
    """SAEBench's evaluations, those that the adapter cannot change among them."""
    found = measured(runs, "saebench")
    columns = [
        ("evaluation", "text"),
        ("hookpoint", "text"),
        ("metric", "text"),
        ("original model", "number"),
        ("adapted model", "number"),
    ]
    columns += [("can change", "text")]
    keys = ("eval", "hookpoint", "metric", "base", "adapted", "can_change")
    rows = [row_of(runs, run, [m.get(key) for key in keys]) for _, run, r in found for m in r.get("metrics", [])]
    left_out = [row_of(runs, run, [s.get("eval"), s.get("why")]) for _, run, r in found for s in r.get("skipped", [])]
    tables = [
        Table("Metrics", by_run(runs, columns), rows),
        Table("Left out", by_run(runs, [("evaluation", "text"), ("why", "text")]), left_out),
    ]
    facts = [("data", "data"), ("SAEBench", "sae_bench"), ("command", "command"), ("cannot change", "cannot_change")]
    facts += [("why", "why")]
    told = [row_of(runs, run, [name, r.get(key)]) for _, run, r in found for name, key in facts if r.get(key)]
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
