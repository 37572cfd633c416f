"""What a page is made of: sections of words, figures and tables, as plain data for the template."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelora.evals.registry import EVALUATIONS
from saelora.evals.variant import Variant
from saelora.identity import SAE, About, kind_of
from saelora.reporting import names
from saelora.reporting.format import finite
from saelora.reporting.page.read import R, Run, apart, differences, other_rows

# A column's numbers are written as text, nats, share, count or number. An estimate {"value", "low", "high"} is written
# with its interval.


@dataclass(frozen=True)
class Cell:
    """A cell as shown, and with all its digits for the CSV."""

    text: str
    interval: str = ""
    value: Any = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    """Columns (name, form) and rows of raw values; the first ``n_heads`` cells of a row name it."""

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]
    folded: bool = False

    def cells(self) -> list[list[Cell]]:
        """The rows as they are shown."""
        return [[cell(value, form) for value, (_, form) in zip(row, self.columns, strict=True)] for row in self.rows]

    def has_interval(self, column: int) -> bool:
        """Whether any row holds an estimate here: in the CSV, the column becomes three."""
        return any(isinstance(row[column], Mapping) for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A drawing with the words and the table that stand for it."""

    name: str  # id in the page, and the name of exported files
    caption: str
    svg: str
    table: Table


@dataclass(frozen=True)
class Note:
    """What one run's part found, in words; where it was not measured, the command that does."""

    run: Run
    lines: Sequence[str] = ()
    command: str | None = None
    told: str = "Not measured yet"  # before the command
    warning: str | None = None
    rows: Sequence[str] = ()  # with what it does not compare: other rows, transcoders put in otherwise


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    name: str
    title: str
    about: str
    notes: Sequence[Note] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    first: Sequence[Table] = ()  # tables before the figures
    short: str = ""  # the title in the navigation
    extra: Any = None  # for sections that the template lays out itself
    measured: bool = True
    warnings: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()  # text and address, relative to the page
    payload: Any = None  # data for the page's script, which shows text token by token
    gist: Sequence[tuple[str, str]] = ()  # its main number, seen while it is folded: run (or nothing) and words
    open: bool = False

    def gists(self) -> list[tuple[str, str]]:
        """Its main number of each run; without words of its own, the first that each run's part found."""
        if self.gist or not self.notes:
            return _few(self.gist)
        if not any(note.lines for note in self.notes):
            return [("", "Not measured yet" if self.name != "latents" else "Not counted yet")]
        several = len(self.notes) > 1
        told = [
            (note.run.label if several else "", note.lines[0] if note.lines else "not measured yet")
            for note in self.notes
        ]
        return _few(told)

    def careful(self) -> list[str]:
        """What must be known before its numbers: seen while it is folded too."""
        several = len(self.notes) > 1
        own = [f"{note.run.label}: {note.warning}" if several else note.warning for note in self.notes if note.warning]
        return [*self.warnings, *own]

    def apart(self) -> list[str]:
        """Which of its figures do not compare."""
        several = len(self.notes) > 1
        return [f"{note.run.label}: {told}" if several else told for note in self.notes for told in note.rows]


_FEW = 6  # runs whose main number a folded section shows


def _few(gists: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    more = len(gists) - _FEW
    return [*gists[:_FEW], *([("", f"and {more} more")] if more > 0 else [])]


def cell(value: Any, form: str) -> Cell:
    """A raw value in the given form; an undefined one is a dash."""
    if isinstance(value, Mapping):
        point, low, high = value.get("value"), value.get("low"), value.get("high")
        known = finite(low) is not None and finite(high) is not None
        interval = f"{written(low, form)} to {written(high, form)}" if known else ""
        return Cell(written(point, form), interval, point, finite(low), finite(high))
    return Cell(written(value, form), value=None if isinstance(value, bool) else finite(value) and value)


def written(value: Any, form: str) -> str:
    """A number or text for a reader."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value, form).replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return str(value)


def _number(value: float, form: str) -> str:
    if form == "share":
        return f"{value:.1%}"
    if form == "nats":
        return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
    if form in ("count", "number") and isinstance(value, int):
        return f"{value:,}"
    if form == "count":
        return f"{value:,.4g}"
    if form == "number":
        return f"{value:.3g}"
    return str(value)


Shaded = tuple[str, list[tuple[str, int, bool]]]  # a passage's peak, its tokens: text, shade of 5, whether the focus


def shaded(tokens: Sequence[str], values: Sequence[float], focus: int | None, top: float) -> Shaded:
    """A passage whose tokens are shaded by activation; ``top`` has the darkest shade."""
    pairs = enumerate(zip(tokens, values, strict=True))
    made = [(text, min(5, round(5 * max(0.0, value) / top)), i == focus) for i, (text, value) in pairs]
    return cell(max(values, default=None), "number").text, made


def estimates(values: Sequence[Any]) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Values, lower and upper ends of estimates; a plain number has no interval."""
    made: tuple[list[float | None], list[float | None], list[float | None]] = ([], [], [])
    for each in values:
        parts = (each.get("value"), each.get("low"), each.get("high")) if isinstance(each, Mapping) else (each,) * 3
        for side, part in zip(made, parts, strict=True):
            side.append(finite(part))
    return made


def notes(runs: Sequence[Run], part: str) -> list[Note]:
    """What each run's part found."""
    evaluation = EVALUATIONS[part]
    told = []
    first: Run | None = None
    for run in runs:
        if part not in run.found:
            told.append(_missing(run, part))
            continue
        told.append(
            Note(
                run, evaluation.lines(run.found[part]), warning=_warning(run, part), rows=_other_rows(run, part, first)
            )
        )
        first = first or run
    return told


def _warning(run: Run, part: str) -> str | None:
    about = run.parts[part].about or About()
    told = [f"Forced by --other-weights: {each}." for each in about.other_weights]
    if other := differences(run, part):
        told.append(f"Measured on something else than this run's own: {'; '.join(other)}.")
    told += [f"Not checked: {each}." for each in about.unchecked]
    return " ".join(told) or None


def _other_rows(run: Run, part: str, first: Run | None) -> list[str]:
    about = run.parts[part].about or About()
    told = [f"Its figures do not compare with the result above: {found}."] if (found := apart(run, part)) else []
    if first is None or not EVALUATIONS[part].on_rows:
        return told
    if found := other_rows(about, first.parts[part].about or About()):
        told.append(f"Its figures do not compare with those of {first.label}: {found}.")
    return told


def _missing(run: Run, part: str) -> Note:
    if run.manifest.tuned_saes and not EVALUATIONS[part].of_trained_saes:
        return Note(run, ["This is about an adapter around what stays frozen; here that was trained."])
    if EVALUATIONS[part].of_saes and kind_of(*run.manifest.saes) is not SAE:
        return Note(run, ["This is about SAEs alone; here a transcoder is spliced in."])
    return Note(run, command=f"saelora evaluate --adapter {quoted(run)} --parts {part}")


def quoted(run: Run) -> str:
    """The run's folder as a shell takes it."""
    return quoted_path(run.folder)


def quoted_path(path: Path) -> str:
    """A path as a shell takes it."""
    import shlex

    return shlex.quote(str(path))


def names_of(run: Run, part: str = "") -> dict[Variant, str]:
    """What the variants of a run's model are called where its result is told, or that of a part.

    Args:
        part: empty for the result.
    """
    about = (run.parts[part].about if part else None) or run.about
    tells_modes = part in EVALUATIONS and EVALUATIONS[part].of_transcoders
    return names.of_saes(run.manifest.saes, run.results.method, None if tells_modes else about.replacement)


def shared_names(runs: Sequence[Run], part: str = "") -> dict[Variant, str]:
    """The same for a column that all runs share: a name that is all theirs, or one that says less."""
    each = [names_of(run, part) for run in runs if not part or part in run.parts]
    return {variant: _shared([own[variant] for own in each], neutral) for variant, neutral in names.NEUTRAL.items()}


def _shared(each: Sequence[str], neutral: str) -> str:
    return each[0] if len(set(each)) == 1 else neutral


def measured(runs: Sequence[Run], kind: type[R]) -> list[tuple[int, Run, R]]:
    """Number, run and result of the runs that have one; the number gives a run its colour in every figure."""
    return [(i, run, result) for i, run in enumerate(runs) if (result := run.result(kind)) is not None]


def by_run(runs: Sequence[Run], columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Columns, with the run's name in front where there are several runs."""
    return [("run", "text"), *columns] if len(runs) > 1 else list(columns)


def row_of(runs: Sequence[Run], run: Run, values: Sequence[Any]) -> list[Any]:
    """A row for ``by_run``'s columns."""
    return [run.label, *values] if len(runs) > 1 else list(values)


def named(runs: Sequence[Run], run: Run, told: str) -> str:
    """A series' name: the run where there are several, and what it shows."""
    return f"{run.label}: {told}" if len(runs) > 1 and told else run.label if len(runs) > 1 else told
