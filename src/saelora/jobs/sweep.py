"""saelora sweep: adapters over a grid of ranks, SAEs, layers, placements, models; what can share a pass does."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saelora.config import Configuration, build, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import write_whole
from saelora.jobs import train_sae
from saelora.jobs.run import open_collection
from saelora.jobs.sae_folder import FINISHED
from saelora.jobs.spec import digest
from saelora.jobs.sweep_plan import Point, SweepSpec, adapter_folder, expand, group_points, read_recipe, row_file
from saelora.manifest import MANIFEST, read_json, write_json
from saelora.models.assets import cache_dir
from saelora.named import check_named
from saelora.records import JsonObject
from saelora.reporting.outcome import DONE
from saelora.reporting.sweep import figures, markdown, text_table
from saelora.reporting.sweep_point import SweepPoint, SweepResult
from saelora.reporting.tables import write_csv
from saelora.train.distributed import current_group

MEMORY_SHARE = 0.4  # of what is free, for all processes together: they may share a machine


class Config(Configuration):
    """Sweep"""

    recipe: str | None = option(None, "YAML file: base options, a grid, points (see docs/guide.md)", positional=True)
    out: str | None = option(None, "folder for table, figures and points; never overwritten silently")
    set: list[str] = option([], "KEY=VALUE over the recipe, e.g. tokens=10k or grid.rank=[4,64]; repeatable")
    resume: bool = option(False, "go on with the sweep in --out; finished points are kept, also of a changed recipe")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    save_adapters: bool = option(False, "keep the adapter of every point that did not diverge, as a run: adapters/<id>")
    quiet: bool = option(False, "show no progress")


def sweep(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Run every point of a recipe, and draw its figure from the table.

    Points on the same rows of the same model share passes, as many at once as memory allows. Each point's row is on
    disk as soon as its group ends: points/<id>.json, and all of them in results.json, results.csv and results.md.
    Started by torchrun, every process takes groups of its own.

    Returns:
        {"title", "points": one row per point, "figures": paths}.

    Raises:
        InputError: bad input, with its remedy; where some groups fail, after all others are done.
        Interrupted: stopped by a signal; the group in hand has been saved.
    """
    config = configured(Config, config, options)
    if not config.recipe:
        raise InputError("no recipe given: name a YAML file, such as recipes/smollm/rank.yaml")
    recipe = read_recipe(Path(config.recipe), config.set)
    points = expand(recipe, config.recipe)
    if any(point.config.shard for point in points):
        raise InputError("shard divides one run over the processes, a sweep gives each its own runs: leave it out")
    other = next((point.config.method for point in points if point.config.method != "lora"), None)
    if other:
        raise InputError(f"method {other} is not for sweeps, whose runs are adapters alone: use saelora compare")
    for point in points:
        check_named(point.config)
    with ExitStack() as held:
        return _sweep(config, recipe, points, held)


def _sweep(config: Config, recipe: SweepSpec, points: list[Point], held: ExitStack) -> JsonObject:
    processes = current_group(points[0].config.device)
    console = Console(quiet=config.quiet or not processes.is_main)
    folder = processes.on_main(lambda: open_collection(config, "points", "sweep", held))
    console.say(f"{config.recipe}: {len(points)} points")
    from saelora.jobs.sweep_groups import Runner, publish  # seconds: after what can be wrong without it

    processes.on_main(lambda: publish(folder))
    saes = _trained_saes(recipe, points[0], console)
    done = processes.on_main(lambda: {point.id for point in points if _is_done(folder, point, config.save_adapters)})
    todo = [point for point in points if point.id not in done]
    if len(todo) < len(points):
        console.say(f"{len(points) - len(todo)} of {len(points)} points are done already")
    groups = group_points(todo)
    everyone = processes.patient_barrier()
    runner = Runner(config.save_adapters, recipe, folder, saes, console, MEMORY_SHARE / processes.world)
    failures: list[str] = []
    mine = groups[processes.rank :: processes.world]
    for i, group in enumerate(mine):
        console.say(f"group {i + 1} of {len(mine)}: {len(group)} points")
        try:
            runner.run(group)
        except InputError as error:
            failures.append(str(error))
            console.say(f"group {i + 1} failed: {error}")
        if processes.is_main:
            _write_tables(recipe, points, folder)
    everyone()
    failures = [failure for found in processes.gather(failures) for failure in found]
    drawn = processes.on_main(lambda: _finish(recipe, points, folder))
    if failures:
        raise InputError(f"{len(failures)} of {len(groups)} groups failed, the rest is in {folder}: {failures[0]}")
    return {"title": recipe.title, "points": [row.to_json() for row in _rows(points, folder)], "figures": drawn}


def render(results: dict[str, Any]) -> str:
    """The table as a person reads it."""
    rows = [SweepPoint.model_validate(row) for row in results["points"]]
    return "\n".join([results["title"], "", text_table(rows), "", *results["figures"]])


def _trained_saes(recipe: SweepSpec, point: Point, console: Console) -> str:
    """The folder of the recipe's own SAEs, trained on first use and cached for every recipe that names the same."""
    if recipe.train_sae is None:
        return ""
    values = {"device": point.config.device, **recipe.train_sae}
    folder = cache_dir() / "saes" / digest(recipe.train_sae)
    if not (folder / FINISHED).exists():
        console.say(f"training the recipe's SAEs, once, into {folder}")
        train_sae.train_sae(build(train_sae.Config, {**values, "out": str(folder), "resume": folder.exists()}))
    return str(folder)


def _is_done(folder: Path, point: Point, with_adapter: bool) -> bool:
    """Whether a point has its row, and its adapter where that is asked for; one that diverged has none to keep."""
    if not row_file(folder, point).exists():
        return False
    if not with_adapter or (adapter_folder(folder, point) / MANIFEST).exists():
        return True
    return _row(row_file(folder, point)).status != DONE


def _rows(points: list[Point], folder: Path) -> list[SweepPoint]:
    return [_row(row_file(folder, point)) for point in points if row_file(folder, point).exists()]


def _row(file: Path) -> SweepPoint:
    return SweepPoint.read(read_json(file), file, "delete it and repeat with --resume")


def _write_tables(recipe: SweepSpec, points: list[Point], folder: Path) -> None:
    rows = _rows(points, folder)
    if not rows:
        return
    found = SweepResult(title=recipe.title, x=recipe.x, series=recipe.series, points=rows)
    write_json(folder / "results.json", found)
    write_csv([row.to_json() for row in rows], folder / "results.csv")
    write_whole(folder / "results.md", (markdown(rows) + "\n").encode())


def _finish(recipe: SweepSpec, points: list[Point], folder: Path) -> list[str]:
    _write_tables(recipe, points, folder)
    rows = _rows(points, folder)
    return [str(path) for path in figures(rows, recipe.x, recipe.series, recipe.title, folder)]
