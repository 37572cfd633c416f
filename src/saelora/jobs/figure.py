"""saelora figure: figures for papers, and the numbers that they show as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saelora.config import Configuration, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.evals.replacement.result import ReplacementResult
from saelora.files import write_whole
from saelora.identity import not_comparable
from saelora.jobs.fetched import beside, folder_of, name_of
from saelora.manifest import check_writable
from saelora.reporting import sweep
from saelora.reporting.page import Collection, read_collection, read_runs
from saelora.reporting.page.read import Run

if TYPE_CHECKING:
    from saelora.reporting.paper.plot import Plot

FORMATS = ("pdf", "svg", "png")


class Config(Configuration):
    """Figure"""

    dirs: list[str] = option(
        [],
        "folders of runs, or hub repositories that hold them, drawn into one figure; or the folder of one sweep or "
        "comparison",
        positional=True,
    )
    kind: Literal["auto", "learning", "losses", "replacement", "sweep", "race"] = option(
        "auto",
        "what is drawn; auto: what the folder holds (a sweep, a comparison's race, replacement, learning, losses)",
    )
    x: str | None = option(None, "column that a sweep is drawn over; default: its recipe's")
    width: Literal["single", "double"] = option("single", "one column (3.25 inches) or two (6.75 inches)")
    format: tuple[Literal["pdf", "svg", "png"], ...] = option(("pdf",), "any of pdf svg png")
    out: str | None = option(
        None,
        "path without its ending; default: figure-KIND in the folder, NAME-KIND here for a repository, "
        "saelora-KIND here for several runs",
    )
    overwrite: bool = option(False, "write over figures that are there")
    quiet: bool = option(False, "show no progress")


def figure(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Draw a figure of finished runs, of a sweep or of a comparison; runs no model.

    Returns:
        "kind", "files": the figure in each format, "data": the CSV of what it shows, "notes": what does not compare.

    Raises:
        InputError: no such folder, nothing of this kind in it, or the files are there already.
    """
    config = configured(Config, config, options)
    if not config.dirs:
        raise InputError("no run given: saelora figure RUN, as in saelora figure saelora-demo")
    dirs = [str(folder_of(each)) for each in config.dirs]
    found = _collection(dirs)
    runs = [] if found is not None else read_runs(dirs, [name_of(each) for each in config.dirs])
    plot = _runs_plot(config, runs) if found is None else _collection_plot(config, found)
    Console(quiet=config.quiet).say(f"drawing {', '.join(config.dirs)}")
    folder = found.folder if found is not None else runs[0].folder
    stem = Path(f"saelora-{plot.kind}")
    if len(dirs) == 1:
        stem = beside(config.dirs[0], plot.kind) or folder / f"figure-{plot.kind}"
    return _write(plot, Path(config.out) if config.out else stem, config, _notes(runs, found))


def _write(plot: "Plot", stem: Path, config: Config, notes: list[str]) -> dict[str, Any]:
    from saelora.reporting.paper.draw import save
    from saelora.reporting.paper.plot import as_csv

    if stem.suffix[1:] in FORMATS:
        raise InputError(f"--out {stem} ends in {stem.suffix}: leave that out, and say --format {stem.suffix[1:]}")
    data = stem.with_name(f"{stem.name}.csv")
    formats = list(dict.fromkeys(config.format))
    if not stem.absolute().parent.is_dir():
        raise InputError(f"{stem} cannot be written: there is no folder {stem.parent}")
    for path in (data, *(stem.with_name(f"{stem.name}.{suffix}") for suffix in formats)):
        check_writable(path)
        if path.exists() and not config.overwrite:
            raise InputError(f"{path} exists: choose another --out, or --overwrite")
    write_whole(data, as_csv(plot).encode())
    paths = save(plot, stem, config.width, formats)
    return {"kind": plot.kind, "files": [str(path) for path in paths], "data": str(data), "notes": notes}


def _collection(dirs: Sequence[str]) -> Collection | None:
    if len(dirs) == 1:
        return read_collection(dirs[0])
    for folder in dirs:
        if (found := read_collection(folder)) is not None:
            raise InputError(f"{folder} is a {found.kind}: name it alone, as in saelora figure {folder}")
    return None


def _runs_plot(config: Config, runs: Sequence[Run]) -> "Plot":
    from saelora.reporting.paper import plots

    if config.kind in ("sweep", "race"):
        other = "sweep" if config.kind == "sweep" else "comparison"
        raise InputError(f"--kind {config.kind} is of a {other}'s folder, {runs[0].folder} is a run: leave it out")
    if config.x is not None:
        raise InputError(f"--x is a column of a sweep, {runs[0].folder} is a run: leave it out")
    kind = config.kind
    if kind == "auto":
        if all(run.result(ReplacementResult) is not None for run in runs):
            kind = "replacement"
        else:
            kind = "learning" if all(len(run.results.history) > 1 for run in runs) else "losses"
    draw = {"learning": plots.learning, "losses": plots.losses, "replacement": plots.replacement}[kind]
    return draw(runs)


def _collection_plot(config: Config, found: Collection) -> "Plot":
    from saelora.reporting.paper import plots

    own = "sweep" if found.kind == "sweep" else "race"
    if config.kind not in ("auto", own):
        raise InputError(
            f"--kind {config.kind} is of runs, {found.folder} is a {found.kind}: leave it out, or name runs of it"
        )
    if found.kind == "sweep":
        if config.x is not None and config.x not in sweep.AXES:
            raise InputError(f"x is {config.x!r}, expected one of {', '.join(sweep.AXES)}")
        return plots.swept(found, config.x)
    if config.x is not None:
        raise InputError(f"--x is a column of a sweep, {found.folder} is a comparison: leave it out")
    return plots.race(found)


def _notes(runs: Sequence[Run], found: Collection | None) -> list[str]:
    if found is None:
        return not_comparable([run.about for run in runs], "runs")
    return sweep.notes(found.points) if found.points else not_comparable([run.about for run in found.runs], "runs")


def render(results: dict[str, Any]) -> str:
    """Where the files are."""
    lines = [f"Careful: {note}" for note in results["notes"]]
    return "\n".join([*lines, *results["files"], f"{results['data']} (the numbers)"])
