"""A sweep's or a comparison's folder -> the sections of its page. Reads JSON only: no model, no torch."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from saelora.errors import InputError
from saelora.identity import About, groups, model_name
from saelora.manifest import MANIFEST, RESULTS, read_json
from saelora.reporting import compare, sweep
from saelora.reporting.best import best, ranking
from saelora.reporting.comparison import figures as drawings
from saelora.reporting.comparison.equal import Compared
from saelora.reporting.comparison.run import ComparisonResult, ComparisonRun
from saelora.reporting.format import capital, one_line
from saelora.reporting.outcome import DONE
from saelora.reporting.page import charts, usage
from saelora.reporting.page.charts import Bar, Series, style
from saelora.reporting.page.lead import Lead
from saelora.reporting.page.provenance import rows_text
from saelora.reporting.page.view import Figure, Section, Table, quoted_path, written
from saelora.reporting.sweep_point import SweepPoint, SweepResult
from saelora.reporting.text import ended_worse

_KINDS = {"points": "sweep", "runs": "comparison"}  # the key of results.json, and the folder of its files
_CAPTIONS = {
    "race": "Cross entropy against training time, the SAE's own included.",
    "speedups": "How much sooner each loss of the SAE trained end to end was reached.",
    "equal": "Share of the gap closed at equal tokens, and in equal time.",
    "left_behind": "What each way leaves behind.",
}
_NAMING = ("model", "layer", "n_saes", "d_sae", "l0", "rank", "placement", "lr", "seed")  # columns that name a point
_MOST_BARS = 12
_TIDY = ("name", "start", "seed", "budget", "share", "n_tokens", "total_seconds", "total_model_flops", "ce", "kl")


@dataclass(frozen=True)
class Collection:
    """A sweep's points or a comparison's runs, as its results.json holds them."""

    kind: str  # sweep or comparison
    folder: Path
    title: str
    rows: Sequence[SweepPoint | ComparisonRun]
    x: str = "rank"
    series: str | None = None

    @property
    def points(self) -> list[SweepPoint]:
        return [row for row in self.rows if isinstance(row, SweepPoint)]

    @property
    def runs(self) -> list[ComparisonRun]:
        return [row for row in self.rows if isinstance(row, ComparisonRun)]


def _published(folder: Path) -> str | None:
    """The key of results.json where that is all there is left of a sweep or a comparison."""
    try:
        found = read_json(folder / RESULTS)
    except InputError:
        return None
    return next((key for key in _KINDS if isinstance(found, dict) and isinstance(found.get(key), list)), None)


def read_collection(folder: str | Path) -> Collection | None:
    """What a folder of many runs holds; None where it is no such folder.

    Raises:
        InputError: it is one without results, or they are damaged.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return None
    key = next((key for key in _KINDS if (folder / key).is_dir()), None) or _published(folder)
    if key is None:
        return None
    kind = _KINDS[key]
    found = read_json(folder / RESULTS)
    rows = found.get(key) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{folder / RESULTS} holds no {key}: is {folder} the output folder of a saelora {kind}?")
    if not rows:
        raise InputError(f"{folder} has no finished {key} yet: repeat its command with --resume")
    remedy = f"repeat the {kind} with --resume to write it anew"
    if key == "runs":
        compared = ComparisonResult.read(found, folder / RESULTS, remedy)
        return Collection(kind, folder, compared.title or kind, compared.runs)
    swept = SweepResult.read(found, folder / RESULTS, remedy)
    x = swept.x if swept.x in sweep.AXES else "rank"
    series = swept.series if swept.series in (*sweep.AXES, *sweep.SERIES) else None
    return Collection(kind, folder, swept.title or kind, swept.points, x, series)


def lead(found: Collection) -> Lead:
    """The best of it in one sentence and one picture, and for a comparison what else it found."""
    n = len(found.rows)
    what = f"A {found.kind} of {n} {'run' if found.kind == 'comparison' else 'point'}{'s' if n != 1 else ''}."
    return _lead_of_runs(found, what) if found.runs else _lead_of_points(found, what)


def _lead_of_points(found: Collection, what: str) -> Lead:
    rows = found.points
    varied = [column for column in sweep.varied_columns(rows) if column in _NAMING] or ["rank"]
    names = [one_line(", ".join(f"{c} {written(getattr(row, c), 'number')}" for c in varied)) for row in rows]
    given = [
        (name if names.count(name) == 1 else f"{name} ({row.id})", row) for name, row in zip(names, rows, strict=True)
    ]
    told = "Each point's share of the gap closed, with its 95 % interval."
    picture = None
    if (figure := _over_x(found, *sweep.PANELS[0], name="lead")) is not None:
        picture, told = figure.svg, figure.caption
    elif shown := ranking(given)[:_MOST_BARS]:
        picture = _shares([(name, row.gap_closed or 0.0, row.interval("gap_closed")) for name, row in shown])
    return Lead(best(given, "points", [row.about for row in rows]), picture, told, cost=what)


def _lead_of_runs(found: Collection, what: str) -> Lead:
    findings = compare.findings(found.runs)
    group = sorted(compare.main_group(compare.equal_tokens(found.runs)), key=lambda row: -row.value)
    if not group:
        return Lead(findings[0] if findings else what, cost=what, more=findings[1:])
    first, n = group[0], len(group)
    said = f"Of {n} ways, {first.name} closes most of the SAE's gap with {first.budget:,} tokens from {first.start}: "
    said += _with_interval(first)
    if n > 1:
        near = first.low is not None and group[1].high is not None and group[1].high >= first.low
        said += f"; next {group[1].name} {_with_interval(group[1])}{'; their intervals overlap' if near else ''}"
    kept = [(row.name, row.value, [row.low, row.high] if row.low is not None and row.high is not None else None)
            for row in group[:_MOST_BARS]]  # fmt: skip
    told = "Each way's share of the gap closed at equal tokens, with its 95 % interval where there are several seeds."
    return Lead(f"{said}.", _shares(kept), told, cost=what, more=findings)


def _with_interval(row: Compared) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.1%}"
    return f"{row.value:.1%} (95 % interval {row.low:.1%} to {row.high:.1%})"


def _shares(rows: Sequence[tuple[str, float, Sequence[float] | None]]) -> str:
    bars = [
        Bar(name, value * 100, [end * 100 for end in interval] if interval else None, "won" if value > 0 else "worse")
        for name, value, interval in rows
    ]
    return charts.bars(bars, "lead", "share of the gap closed (%)")


def sections(found: Collection, links_from: Path) -> list[Section]:
    """Results, and the runs behind them."""
    results = _sweep(found) if found.kind == "sweep" else _comparison(found)
    return [results, _use(found), _runs(found, links_from)]


def _use(found: Collection) -> Section:
    """The best adapter that was kept, and the command that makes all again."""
    places = [(row.id, found.folder / "adapters" / row.id) for row in found.rows if row.id == Path(row.id).name]
    kept = {name: place for name, place in places if (place / MANIFEST).is_file()}
    ranked = [row.id for _, row in ranking([("", row) for row in found.points]) if isinstance(row, SweepPoint)]
    best_kept = next((kept[each] for each in [*ranked, *kept] if each in kept), None)
    command = "sweep" if found.kind == "sweep" else "compare"
    repeat = []
    if best_kept is not None:
        out = quoted_path(best_kept.parent / f"{best_kept.name}-again")
        told = f"saelora adapt --config {quoted_path(best_kept / 'config.yaml')} --out {out}"
        repeat = [usage.Code("Make the best kept adapter again", told)]
    folder = quoted_path(found.folder)
    again = f"All of it: saelora {command} RECIPE.yaml --out {folder}, with the recipe that it was made of"
    otherwise = "" if best_kept is not None else "Its adapters were not kept (--save-adapters keeps those of a sweep). "
    return usage.of_folder(best_kept, repeat, f"{otherwise}{again}.")


def _sweep(found: Collection) -> Section:
    rows = found.points
    drawn = [figure for key, y, scale in sweep.PANELS if (figure := _over_x(found, key, y, scale))]
    if found.x == "n_saes" and (figure := _cross_entropies(found)):
        drawn.insert(0, figure)
    about = (
        "Held-out text, each row read by every variant of the model. Gap closed is the share of the SAE's cost that "
    )
    about += "the adapter wins back; figures are nats per predicted token, with 95 % intervals."
    return Section(
        "results", "Result", about, figures=drawn, first=[_points_table(rows)], warnings=sweep.notes(rows),
        gist=[("", _range(rows))],
    )  # fmt: skip


def _range(rows: Sequence[SweepPoint]) -> str:
    """The least and the largest share of the gap closed."""
    shares = [row.gap_closed for row in rows if row.gap_closed is not None]
    if not shares:
        return f"{len(rows)} points, of none a share of the gap"
    return f"gap closed {min(shares):.1%} to {max(shares):.1%} over {len(shares)} points"


def _points_table(rows: Sequence[SweepPoint]) -> Table:
    varied = sweep.varied_columns(rows)
    measured = [c for c in sweep.FIGURES if any(getattr(row, c) is not None for row in rows)]
    letters = groups([row.about for row in rows])
    marked = [("text", "text")] if len(set(letters)) > 1 else []
    form = {"gap_closed": "share", "fvu": "number", "l0": "number"}
    columns = [(c, "text" if c in ("model", "sae", "placement") else "number") for c in varied]
    columns = [("point", "text"), *columns, *marked, *((c, form.get(c, "nats")) for c in measured), ("ended", "text")]
    made = []
    for row, letter in zip(rows, letters, strict=True):
        ended = "worse than spliced" if ended_worse(row) else row.status
        cells = [row.id, *(getattr(row, c) for c in varied), *(letter for _ in marked)]
        made.append([*cells, *(row.estimate(c) for c in measured), ended])
    return Table("The points", columns, made)


def _over_x(found: Collection, key: str, y: str, scale: float, name: str | None = None) -> Figure | None:
    """A figure of the sweep over its x, a line for each of its series; what has no place on x is a line across."""
    rows = [row for row in found.points if row.status == DONE and getattr(row, key) is not None]
    if len({getattr(row, found.x) for row in rows} - {None}) < 2:
        return None
    label, logarithmic = sweep.AXES[found.x]
    series, table = [], []
    for i, (shown, own) in enumerate(sweep.lines(rows, found.series).items()):
        points = sweep.points(own, found.x, key)
        xs = [p[0] for p in points]
        middle, low, high = ([p[j] * scale for p in points] for j in (1, 2, 3))
        series.append(Series(shown, xs, middle, low, high, style(i)))
        table += [[shown or key, *_row(point)] for point in points]
    across = [
        (f"placement {row.placement}", getattr(row, key) * scale) for row in rows if getattr(row, found.x) is None
    ]
    log_x = logarithmic and all(x > 0 for each in series for x in each.x)
    svg = charts.lines(
        series, name or key, label, y, zero=True, levels=across, log_x=log_x, whole=found.x in sweep.WHOLE
    )
    form = "share" if key == "gap_closed" else "nats"
    return Figure(
        key,
        f"{capital(y)} over {label}. Bars: from the lowest to the highest seed; of one seed, 95 % intervals.",
        svg,
        Table(f"{key} over {found.x}", [("series", "text"), (found.x, "number"), (key, form)], table),
    )


def _row(point: tuple[float, float, float, float]) -> list[Any]:
    x, value, low, high = point
    return [x, {"value": value, "low": low, "high": high}]


def _cross_entropies(found: Collection) -> Figure | None:
    rows = [row for row in found.points if row.status == DONE and row.gap_closed is not None]
    if len({row.n_saes for row in rows}) < 2:
        return None
    series, table = [], []
    for i, (key, name) in enumerate((("ce_base", "original"), ("ce_sae", "spliced"), ("ce_adapted", "adapted"))):
        points = sweep.points(rows, "n_saes", key)
        series.append(Series(name, [p[0] for p in points], [p[1] for p in points], style=style(i)))
        table += [[name, *_row(point)] for point in points]
    svg = charts.lines(series, "cross-entropies", sweep.AXES["n_saes"][0], "cross entropy (nats per token)")
    columns = [("model", "text"), ("n_saes", "number"), ("cross entropy", "nats")]
    told = "Cross entropy over the number of SAEs."
    return Figure("cross-entropies", told, svg, Table("Cross entropies", columns, table))


def _comparison(found: Collection) -> Section:
    runs = found.runs
    tables = [_as_table(title, lines) for title, lines in compare.all_tables(runs)]
    numbers = Table("Every evaluation of every run", [(c, _form(c)) for c in _TIDY], _tidy(runs), folded=True)
    by_title = {table.caption: table for table in tables}
    drawn = []
    for name, draw in drawings.DRAWINGS.items():
        svg = charts.embedded(lambda draw=draw: draw(runs, drawings.style_of(runs)), name)  # type: ignore[misc]
        if svg is not None:
            table = by_title.get(compare.TITLE_OF.get(name, ""), numbers)
            drawn.append(Figure(name.replace("_", "-"), _CAPTIONS[name], svg, table))
    about = "Every way to make the model work through its SAE, on the same rows, with what it cost counted."
    told = compare.notes(runs)
    return Section("results", "Result", about, figures=drawn, tables=[*tables[1:], numbers], first=tables[:1],
                   warnings=told, gist=[("", (compare.findings(runs) or [f"{len(runs)} runs"])[0])])  # fmt: skip


def _as_table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """A table of text as one of the page; its first column is named."""
    header, *rows = lines
    return Table(title, [(name or "way", "text") for name in header], [list(row) for row in rows])


def _form(column: str) -> str:
    return {"name": "text", "start": "text", "ce": "nats", "kl": "nats", "share": "share"}.get(column, "number")


def _tidy(runs: Sequence[ComparisonRun]) -> list[list[Any]]:
    return [[None if _lost(row[c]) else row[c] for c in _TIDY] for row in compare.tidy(runs)]


def _lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _runs(found: Collection, links_from: Path) -> Section:
    """What each was made with and measured on, and its files."""
    rows = found.rows
    configs = [row.config for row in rows]
    names = list(dict.fromkeys(name for config in configs for name in config))
    common = [[n, configs[0].get(n)] for n in names if all(config.get(n) == configs[0].get(n) for config in configs)]
    same = {name for name, _ in common}
    varied = [name for name in names if name not in same]
    label = [_label(row) for row in rows]
    one = "point" if found.kind == "sweep" else "run"
    measured = [
        [name, "unknown" if about.model is None else model_name(about.model), rows_text(about)]
        for name, about in zip(label, (row.about or About() for row in rows), strict=True)
    ]
    cost = [[name, *(getattr(row, c, None) for c in _SPENT)] for name, row in zip(label, rows, strict=True)]
    tables = [
        Table("What each was measured on", [(one, "text"), ("model", "text"), ("held-out rows", "text")], measured),
        Table("What was spent", [(one, "text"), *((c, "number") for c in _SPENT)], cost, folded=True),
        Table(f"Options in which the {one}s differ", [(one, "text"), *((n, "text") for n in varied)],
              [[name, *(config.get(n) for n in varied)] for name, config in zip(label, configs, strict=True)],
              folded=True),
        Table(f"Options that all {one}s have", [("option", "text"), ("value", "text")], common, folded=True),
        Table("Versions and hardware", [("what", "text"), ("value", "text")], _environment(rows), folded=True),
    ]  # fmt: skip
    about = f"Each {one} has a file of its own beside this page."
    return Section(
        "runs", "Points" if found.kind == "sweep" else "Runs", about,
        tables=[table for table in tables if table.rows], links=_links(found, links_from),
        gist=[("", f"{len(common)} options in common, {len(varied)} that differ")],
    )  # fmt: skip


_SPENT = ("n_tokens_trained", "budget", "seconds_group", "n_branches", "peak_memory_bytes")


def _label(row: SweepPoint | ComparisonRun) -> str:
    return row.id if isinstance(row, SweepPoint) else f"{row.name}, seed {row.seed} ({row.id})"


def _environment(rows: Sequence[SweepPoint | ComparisonRun]) -> list[list[str]]:
    """What all were made on; where they differ, each value there was."""
    found: dict[str, list[str]] = {}
    for row in rows:
        environment = {} if row.environment is None else row.environment.to_json()
        flat = {**environment, **environment.get("versions", {})}
        for key, value in flat.items():
            if key != "versions" and str(value) not in found.setdefault(key, []):
                found[key].append(str(value))
    return [[key, " / ".join(values)] for key, values in found.items()]


def _links(found: Collection, links_from: Path) -> list[tuple[str, str]]:
    """The files behind each row that are there: its own, and its adapter's page and card."""
    inside = "points" if found.kind == "sweep" else "runs"
    made = []
    for row in found.rows:
        name = row.id
        if name != Path(name).name:
            continue  # no id of ours
        places = [(f"{_label(row)}: its file", found.folder / inside / f"{name}.json")]
        adapter = found.folder / "adapters" / name
        places += [(f"{_label(row)}: its adapter's page", adapter / "report.html")]
        places += [(f"{_label(row)}: its adapter's card", adapter / "README.md")]
        made += [(told, _address(path, links_from)) for told, path in places if path.exists()]
    return made


def _address(path: Path, links_from: Path) -> str:
    relative = os.path.relpath(path.resolve(), links_from.resolve())
    return quote(Path(relative).as_posix())
