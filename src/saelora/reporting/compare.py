"""A comparison's runs -> tables and words. Pure: it sees what the runs measured, never a model."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from saelora.evals.estimate import Estimate, numbers
from saelora.identity import groups
from saelora.reporting import tables
from saelora.reporting.comparison.curves import (
    COSTS,
    Reached,
    Speedup,
    curve_of,
    finite,
    label_of_start,
    speedup_to_e2e,
    speedups,
)
from saelora.reporting.comparison.equal import Compared, equal_seconds, equal_tokens, main_group
from saelora.reporting.comparison.figures import figures
from saelora.reporting.comparison.latents import LATENT_CHANGE, left_behind, mean
from saelora.reporting.comparison.run import ComparisonRun
from saelora.reporting.comparison.words import findings, notes, words
from saelora.reporting.format import count
from saelora.reporting.tables import Row

__all__ = ["equal_seconds", "equal_tokens", "figures", "left_behind", "main_group", "markdown", "speedup_to_e2e"]
__all__ += ["findings", "notes", "speedups", "text_table", "tidy", "words", "write_csv"]

TITLE_OF = {  # figure -> the table that holds its numbers
    "speedups": "Speed-up to the lowest loss of SAEs trained end to end",
    "equal": "Gap closed at equal tokens",
    "left_behind": "What each leaves behind",
}


def tidy(runs: Sequence[ComparisonRun]) -> list[Row]:
    """One row per point of every run's curve.

    Columns: what the run is; share, n_tokens, seconds, model_flops (its own) and total_* (its start's added, None where
    nobody counted that); ce, kl; gap_closed (methods only: of the gap between the original model and the SAE that it
    began from); final.
    """
    rows = []
    for run in runs:
        start, points = run.start, curve_of(run)
        about: Row = {name: getattr(run, name) for name in ("name", "kind", "method", "seed", "budget", "lr")}
        about["start"] = None if start is None else start.name or start.ref
        about["start_share"] = None if start is None else start.share
        for point in points:
            costs = {name: getattr(point, name) for cost in COSTS for name in (cost, f"total_{cost}")}
            figures = {"ce": point.ce, "kl": point.kl, "gap_closed": _gap_closed(run, points[0], point)}
            rows.append({**about, "share": point.share, **costs, **figures, "final": point is points[-1]})
    return rows


def write_csv(runs: Sequence[ComparisonRun], path: Path) -> None:
    """``tidy`` as a CSV file."""
    tables.write_csv(tidy(runs), path)


def markdown(runs: Sequence[ComparisonRun]) -> str:
    """All tables in Markdown, each under its heading."""
    return "\n\n".join(f"## {title}\n\n{tables.markdown(lines)}" for title, lines in all_tables(runs))


def text_table(runs: Sequence[ComparisonRun]) -> str:
    """All tables in aligned plain text, each under its heading."""
    return "\n\n".join(f"{title}\n{tables.aligned(lines)}" for title, lines in all_tables(runs))


def _gap_closed(run: ComparisonRun, first: Reached, point: Reached) -> float | None:
    final = run.final
    start = first.ce if first.share == 0 else final.ce_sae
    if run.kind != "method" or start is None or not finite(start) or not finite(final.ce_base):
        return None
    gap = start - final.ce_base
    return (start - point.ce) / gap if gap > 0 else None


def all_tables(runs: Sequence[ComparisonRun]) -> list[tuple[str, list[list[str]]]]:
    """Every table with its title: header, then lines of text."""
    if not runs:
        return [("Results", [["no run is done yet"]])]
    made = [
        ("Final figures", _finals(runs)),
        (TITLE_OF["speedups"], _speedups(runs)),
        (TITLE_OF["equal"], _equal(equal_tokens(runs))),
        ("Gap closed in equal training time", _equal(equal_seconds(runs))),
        (TITLE_OF["left_behind"], _left_behind(runs)),
    ]
    return [(title, lines) for title, lines in made if len(lines) > 1]


def _finals(runs: Sequence[ComparisonRun]) -> list[list[str]]:
    letters = groups([run.about for run in runs])
    marked = ["text"] if len(set(letters)) > 1 else []
    header = ["", "from", *marked, "tokens", "seeds", "lr", "cross entropy", "KL", "gap closed", "seconds"]
    lines = [[*header, "with its SAE's", "peak memory"]]
    arms: dict[tuple[str, str | None, str, int], list[ComparisonRun]] = {}
    for run, letter in zip(runs, letters, strict=True):
        arms.setdefault((run.name, label_of_start(run), letter, run.budget), []).append(run)
    for (name, start, letter, budget), group in arms.items():
        done = [run for run in group if finite(run.final.ce) and run.curve]
        diverged = f" ({len(group) - len(done)} diverged)" if len(done) < len(group) else ""
        ends = [curve_of(run)[-1] for run in done if curve_of(run)]
        totals = [end.total_seconds for end in ends]
        ce, kl, gap = (mean([getattr(run.final, key) for run in done]) for key in ("ce", "kl", "gap_closed"))
        seconds, total = (_median(values) for values in ([end.seconds for end in ends], totals))
        memory = max((run.peak_memory_bytes or 0 for run in group), default=0)
        lines.append(
            [
                *(name, start or "scratch", *(letter for _ in marked), count(budget), f"{len(group)}{diverged}"),
                " ".join(dict.fromkeys(f"{run.lr:g}" for run in group if run.lr is not None)),
                *(_form(ce, ".4f"), _form(kl, ".4f"), _gap(gap), _form(seconds, ",.0f"), _form(total, ",.0f")),
                f"{memory / 2**30:.2f} GiB" if memory else "–",
            ]
        )
    return lines


def _speedups(runs: Sequence[ComparisonRun]) -> list[list[str]]:
    lines = [["rival", "of", "loss", "time", "tokens", "operations", "seeds that reach it"]]
    found: dict[tuple[str, int, str], dict[str, Speedup]] = {}
    for row in speedups(runs):
        if row.final:
            found.setdefault((row.target, row.budget, row.rival), {})[row.cost] = row
    for (target, budget, rival), costs in found.items():
        row = costs["seconds"]
        cells = [_spread(costs[cost]) for cost in COSTS]
        seeds = f"{row.n_reached} of {len(row.per_seed)}"
        lines.append([rival, f"{target} ({count(budget)} tokens)", f"{row.loss:.4f}", *cells, seeds])
    return lines


def _spread(row: Speedup) -> str:
    if row.median is None:
        return "not reached" if not row.n_reached else "–"
    if row.n_reached == 1:
        return f"{row.median:.2f}×"
    return f"{row.median:.2f}× ({row.least:.2f} to {row.most:.2f})"


def _equal(rows: Sequence[Compared]) -> list[list[str]]:
    timed = any(row.how is not None for row in rows)
    header = ["", "from", "gap closed", "95 % interval", "seeds", "against the first", "seconds"]
    kl = [] if timed else ["KL", "KL against the first"]
    lines = [[*header[:2], "seconds allowed" if timed else "tokens", *header[2:], *(["how"] if timed else kl)]]
    for row in rows:
        limit = f"{row.limit:,.0f}" if timed else count(row.budget)
        against = _difference(row.difference, "{:+.1f}", 100, " points")
        interval = "–" if row.low is None else f"{row.low:.1%} to {row.high:.1%}"
        cells = [row.name, row.start, limit, f"{row.value:.1%}", interval, str(len(row.per_seed)), against]
        last = [str(row.how)] if timed else [_form(row.kl, ".4f"), _difference(row.kl_difference, "{:+.4f}", 1, "")]
        lines.append([*cells, f"{row.seconds:,.0f}", *last])
    return lines


def _difference(found: Estimate | None, form: str, scale: float, unit: str) -> str:
    """A paired difference with its interval."""
    if found is None:
        return "–"
    value, low, high = (form.format(number * scale) for number in numbers(found))
    return f"{value}{unit} ({low} to {high})"


def _left_behind(runs: Sequence[ComparisonRun]) -> list[list[str]]:
    header = [
        "FVU",
        "without the largest 0.1 %",
        "variance these hold",
        "error of a token (over its squared norm, median)",
        "L0",
        "dead latents",
        "same latents (Jaccard)",
        "firing rates' correlation",
        "cost without the SAE",
    ]
    lines = [["", "from", "tokens", *header]]
    forms = (".4f", ".4f", ".0%", ".4f", ".1f", ".1%", ".3f", ".3f", "+.4f")
    for row in left_behind(runs):
        cells = [_form(row.figures[key], form) for key, form in zip(LATENT_CHANGE, forms, strict=True)]
        lines.append([row.name, row.start or "scratch", count(row.budget), *cells])
    return lines


def _gap(value: float | None) -> str:
    return f"{_form(value, '.1%')}{', worse' if value is not None and value < 0 else ''}"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _form(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
