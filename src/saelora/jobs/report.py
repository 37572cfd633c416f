"""saelora report: one self-contained HTML page of one run, of several side by side, of a sweep or of a comparison."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from saelora.config import Configuration, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import write_whole
from saelora.jobs.fetched import beside, folder_of, name_of
from saelora.manifest import check_writable
from saelora.models.assets import cache_dir
from saelora.reporting.counted import find_counted
from saelora.reporting.page import MARKER, Collection, Run, collection_page, page, read_collection, read_runs


class Config(Configuration):
    """Report"""

    dirs: list[str] = option(
        [],
        "folders of saelora adapt runs, or hub repositories that hold them, several are compared; or the folder of one "
        "sweep or comparison",
        positional=True,
    )
    out: str | None = option(
        None,
        "the HTML file; default: report.html in the folder, NAME-report.html here for a repository, "
        "saelora-report.html here for several runs",
    )
    quiet: bool = option(False, "show no progress")


def report(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Write the page of finished runs: losses, and every part that ``saelora evaluate`` has measured so far.

    Of a sweep or a comparison: its table, its figures, and links to its runs.

    Returns:
        "report": the file; "runs": the folders it tells of; "bytes": its size.

    Raises:
        InputError: a folder is no finished run, sweep or comparison, or the file would overwrite something else.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    dirs = [str(folder_of(each)) for each in config.dirs]
    collection = _collection(dirs)
    names = [name_of(each) for each in config.dirs]
    runs = [] if collection is not None else _with_latents(read_runs(dirs, names))
    folders = [collection.folder] if collection is not None else [run.folder for run in runs]
    out = Path(config.out) if config.out else Path("saelora-report.html")
    if not config.out and len(folders) == 1:
        out = beside(config.dirs[0], "report.html") or folders[0] / "report.html"
    _check_out(out)
    console.say(f"drawing {', '.join(map(str, folders))}")
    made = page(runs) if collection is None else collection_page(collection, out.absolute().parent)
    html = made.encode("utf-8")
    write_whole(out, html)
    return {"report": str(out), "runs": [str(folder) for folder in folders], "bytes": len(html)}


def _with_latents(runs: list[Run]) -> list[Run]:
    """The runs with what ``saelora open`` has counted of their latents and kept in the cache."""
    found = find_counted(cache_dir() / "latents", [run.about for run in runs])
    return [replace(run, counted=counted) for run, counted in zip(runs, found, strict=True)]


def _collection(dirs: list[str]) -> Collection | None:
    """The sweep or comparison that is asked for; None where runs are.

    Raises:
        InputError: it is damaged, or named beside other folders.
    """
    for folder in dirs:
        found = read_collection(folder)
        if found is None:
            continue
        if len(dirs) == 1:
            return found
        runs = found.folder / "adapters"
        instead = f", or its runs, in {runs}" if runs.is_dir() else ""
        raise InputError(
            f"{folder} is a {found.kind}, whose points have a page of their own: name it alone, as in saelora report "
            f"{folder}{instead}"
        )
    return None


write_report = report  # its public name in version 0.1


def render(results: dict[str, Any]) -> str:
    """Where the page is."""
    return f"{results['report']} ({results['bytes'] / 1e6:.1f} MB): open it in a browser"


def _check_out(out: Path) -> None:
    """Raise InputError where something other than a report would be overwritten, or there is no place for the file."""
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file, such as --out {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out} cannot be written: there is no folder {out.parent}")
    check_writable(out)
    if out.exists():
        try:
            with out.open("rb") as file:
                ours = MARKER.encode() in file.read(2048)
        except OSError as error:
            raise InputError(f"{out} cannot be read: {error.strerror}; choose another --out") from error
        if not ours:
            raise InputError(f"{out} exists and is no saelora report, so it is left alone: choose another --out")
