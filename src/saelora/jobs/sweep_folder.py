"""What a sweep's folder holds: a row for each finished point, the tables and figures of them, perhaps adapters."""

from pathlib import Path

from saelora.files import write_whole
from saelora.jobs.spec import digest
from saelora.jobs.sweep_plan import Point, SweepSpec, adapter_folder, row_file
from saelora.manifest import MANIFEST, read_json, write_json
from saelora.models.assets import cache_dir
from saelora.records import JsonObject
from saelora.reporting.outcome import DONE
from saelora.reporting.sweep import figures, markdown
from saelora.reporting.sweep_point import SweepPoint, SweepResult
from saelora.reporting.tables import write_csv


def sae_folder(recipe: SweepSpec) -> Path:
    """Where the recipe's own SAEs are, or will be, for every recipe that names the same."""
    return cache_dir() / "saes" / digest(recipe.train_sae or {})


def is_done(folder: Path, point: Point, with_adapter: bool) -> bool:
    """Whether a point has its row, and its adapter where that is asked for; one that diverged has none to keep."""
    if not row_file(folder, point).exists():
        return False
    if not with_adapter or (adapter_folder(folder, point) / MANIFEST).exists():
        return True
    return _row(row_file(folder, point)).status != DONE


def rows_of(points: list[Point], folder: Path) -> list[SweepPoint]:
    return [_row(row_file(folder, point)) for point in points if row_file(folder, point).exists()]


def _row(file: Path) -> SweepPoint:
    return SweepPoint.read(read_json(file), file, "delete it and repeat with --resume")


def write_tables(recipe: SweepSpec, points: list[Point], folder: Path) -> None:
    rows = rows_of(points, folder)
    if not rows:
        return
    found = SweepResult(title=recipe.title, x=recipe.x, series=recipe.series, points=rows)
    write_json(folder / "results.json", found)
    write_csv([row.to_json() for row in rows], folder / "results.csv")
    write_whole(folder / "results.md", (markdown(rows) + "\n").encode())


def finish(recipe: SweepSpec, points: list[Point], folder: Path) -> list[str]:
    write_tables(recipe, points, folder)
    rows = rows_of(points, folder)
    return [str(path) for path in figures(rows, recipe.x, recipe.series, recipe.title, folder)]


def results(recipe: SweepSpec, points: list[Point], folder: Path, drawn: list[str]) -> JsonObject:
    """What ``saelora.sweep`` returns."""
    return {"title": recipe.title, "points": [row.to_json() for row in rows_of(points, folder)], "figures": drawn}
