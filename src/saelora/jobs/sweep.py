"""saelora sweep: adapters over a grid of ranks, SAEs, layers, placements, models; what can share a pass does."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saelora.config import build, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import RUN
from saelora.jobs import train_sae
from saelora.jobs.acting import check_acting
from saelora.jobs.launch.options import LaunchConfig
from saelora.jobs.run import open_collection
from saelora.jobs.sae_folder import FINISHED
from saelora.jobs.sweep_folder import finish, is_done, results, sae_folder, write_tables
from saelora.jobs.sweep_plan import Point, SweepSpec, expand, group_points, read_recipe
from saelora.limits import POSITIVE
from saelora.locks import locked
from saelora.named import check_named
from saelora.records import JsonObject
from saelora.reporting.sweep import text_table
from saelora.reporting.sweep_point import SweepPoint
from saelora.train.distributed import current_group

MEMORY_SHARE = 0.4  # of what is free, for all processes together: they may share a machine


class Config(LaunchConfig):
    """Sweep"""

    recipe: str | None = option(None, "YAML file: base options, a grid, points (see docs/guide.md)", positional=True)
    out: str | None = option(None, "folder for table, figures and points; never overwritten silently")
    set: list[str] = option([], "KEY=VALUE over the recipe, e.g. tokens=10k or grid.rank=[4,64]; repeatable")
    only: list[str] = option(
        [], "run only the point of this id (results.csv has them), beside others' on --out; repeatable"
    )
    resume: bool = option(False, "go on with the sweep in --out; finished points are kept, also of a changed recipe")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    save_adapters: bool = option(False, "keep the adapter of every point that did not diverge, as a run: adapters/<id>")
    launcher_points: int | None = option(
        None, "most points of a job; default: all that share passes (fewer: more jobs, more passes)", limit=POSITIVE
    )
    quiet: bool = option(False, "show no progress")


def sweep(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Run every point of a recipe, and draw its figure from the table.

    Points on the same rows of the same model share passes, as many at once as memory allows. Each point's row is on
    disk as soon as its group ends: points/<id>.json, and all of them in results.json, results.csv and results.md.
    Started by torchrun, every process takes groups of its own; with a launcher, each group is a job. Several processes
    may work on one ``out``, each on its own points (``only``).

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
    check_acting(config, "sweep")
    mine = _named(points, config.only)
    if config.launcher:
        from saelora.jobs.launch.sweeping import launched

        return launched(config, recipe, points, mine)
    with ExitStack() as held:
        return _sweep(config, recipe, points, mine, held)


def _sweep(config: Config, recipe: SweepSpec, points: list[Point], named: list[Point], held: ExitStack) -> JsonObject:
    processes = current_group(points[0].config.device)
    console = Console(quiet=config.quiet or not processes.is_main)
    shared = bool(config.only) and not config.overwrite
    folder = processes.on_main(lambda: open_collection(config, "points", "sweep", held, shared=shared))
    console.say(f"{config.recipe}: {len(points)} points")
    from saelora.jobs.sweep_groups import Runner, publish  # seconds: after what can be wrong without it

    if not shared:
        processes.on_main(lambda: publish(folder))
    saes = _trained_saes(recipe, points[0], console)
    done = processes.on_main(lambda: {point.id for point in named if is_done(folder, point, config.save_adapters)})
    todo = [point for point in named if point.id not in done]
    if len(todo) < len(named):
        console.say(f"{len(named) - len(todo)} of {len(named)} points are done already")
    groups = group_points(todo)
    everyone = processes.patient_barrier()
    runner = Runner(config.save_adapters, recipe, folder, saes, console, MEMORY_SHARE / processes.world)
    failures: list[str] = []
    mine = groups[processes.rank :: processes.world]
    for i, group in enumerate(mine):
        console.say(f"group {i + 1} of {len(mine)}: {len(group)} points")
        try:
            with ExitStack() as taken:
                if shared and not (group := _taken(config, folder, group, taken, console)):
                    continue
                runner.run(group)
        except InputError as error:
            failures.append(str(error))
            console.say(f"group {i + 1} failed: {error}")
        if processes.is_main:
            write_tables(recipe, points, folder)
    everyone()
    failures = [failure for found in processes.gather(failures) for failure in found]
    drawn = processes.on_main(lambda: finish(recipe, points, folder))
    if failures:
        raise InputError(f"{len(failures)} of {len(groups)} groups failed, the rest is in {folder}: {failures[0]}")
    return results(recipe, points, folder, drawn)


def _named(points: list[Point], only: list[str]) -> list[Point]:
    """The points of these ids; all for none.

    Raises:
        InputError: there is no point of such an id.
    """
    known = [point.id for point in points]
    for point_id in only:
        if point_id not in known:
            raise InputError(f"there is no point {point_id!r} to run: expected one of {', '.join(known)}")
    return [point for point in points if not only or point.id in only]


def _taken(config: Config, folder: Path, group: list[Point], taken: ExitStack, console: Console) -> list[Point]:
    """The points of a group that nobody has run, each locked; where another process is at one, wait for it."""
    from saelora.jobs.sweep_groups import publish

    def say_who(who: str) -> None:
        console.say(f"another process ({who}) is at points of this group, waiting for it")

    for point in sorted(group, key=lambda point: point.id):  # in one order: none waits for one that waits for it
        taken.enter_context(locked(folder / "points", f"{RUN}-{point.id}", wait=say_who))
    publish(folder, {point.id for point in group})
    return [point for point in group if not is_done(folder, point, config.save_adapters)]


def render(results: dict[str, Any]) -> str:
    """The table as a person reads it."""
    rows = [SweepPoint.model_validate(row) for row in results["points"]]
    return "\n".join([results["title"], "", text_table(rows), "", *results["figures"]])


def _trained_saes(recipe: SweepSpec, point: Point, console: Console) -> str:
    """The folder of the recipe's own SAEs, trained on first use and cached for every recipe that names the same."""
    if recipe.train_sae is None:
        return ""
    values = {"device": point.config.device, **recipe.train_sae}
    folder = sae_folder(recipe)
    if not (folder / FINISHED).exists():
        console.say(f"training the recipe's SAEs, once, into {folder}")
        train_sae.train_sae(build(train_sae.Config, {**values, "out": str(folder), "resume": folder.exists()}))
    return str(folder)
