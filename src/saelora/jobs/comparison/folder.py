"""What a comparison's folder holds: a file for each finished run, and the tables and figures of them."""

import shutil
from pathlib import Path

from saelora.files import write_whole
from saelora.jobs.comparison.plan import Run
from saelora.manifest import read_json, write_json
from saelora.records import JsonObject
from saelora.reporting import compare as tables
from saelora.reporting.comparison.run import ComparisonResult, ComparisonRun


def row_file(folder: Path, run: Run) -> Path:
    """Where a finished run's figures are written."""
    return folder / "runs" / f"{run.id}.json"


def rows_of(runs: list[Run], folder: Path) -> list[ComparisonRun]:
    """The finished runs."""
    files = [file for run in runs if (file := row_file(folder, run)).exists()]
    return [ComparisonRun.read(read_json(file), file, "delete it and repeat with --resume") for file in files]


def write_tables(title: str, runs: list[Run], folder: Path, *, draw: bool = False) -> list[str]:
    """Everything that is drawn from the finished runs; returns the figures' paths."""
    found = rows_of(runs, folder)
    if not found:
        return []
    write_json(folder / "results.json", ComparisonResult(title=title, runs=found))
    tables.write_csv(found, folder / "results.csv")
    text = "\n\n".join([f"# {title}", tables.markdown(found), *tables.words(found)])
    write_whole(folder / "results.md", (text + "\n").encode())
    return [str(path) for path in tables.figures(found, folder)] if draw else []


def results(title: str, runs: list[Run], folder: Path, drawn: list[str]) -> JsonObject:
    """What ``saelora.compare`` returns; of a comparison that is complete, checkpoints are deleted."""
    found = rows_of(runs, folder)
    if len(found) == len(runs):
        shutil.rmtree(folder / "work", ignore_errors=True)
    done = [run.to_json() for run in found]
    return {"title": title, "runs": done, "missing": len(runs) - len(found), "figures": drawn}
