"""saelora report: one self-contained HTML page of one run, or of several side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelora.config import Configuration, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import write_whole
from saelora.manifest import check_writable
from saelora.report.page import MARKER, page, read_runs


@dataclass(kw_only=True)
class Config(Configuration):
    """Report"""

    dirs: list[str] = option([], "folders of saelora adapt runs; several are compared", positional=True)
    out: str | None = option(
        None, "the HTML file; default: report.html in the run's folder, saelora-report.html here for several runs"
    )
    quiet: bool = option(False, "show no progress")


def report(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Write the page of finished runs: losses, and every part that ``saelora evaluate`` has measured so far.

    Returns:
        "report": the file; "runs": its runs' folders; "bytes": its size.

    Raises:
        InputError: a folder is no finished run, or the file would overwrite something that is no report.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    runs = read_runs(config.dirs)
    out = Path(config.out) if config.out else Path("saelora-report.html")
    if not config.out and len(runs) == 1:
        out = runs[0].folder / "report.html"
    _check_out(out)
    console.say(f"drawing {', '.join(run.label for run in runs)}")
    html = page(runs).encode("utf-8")
    write_whole(out, html)
    return {"report": str(out), "runs": [str(run.folder) for run in runs], "bytes": len(html)}


write_report = report  # its public name: saelora.report is the package that draws


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
