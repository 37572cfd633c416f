"""saelora compare: every way to make a model work through its SAE, at matched cost, in one table."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saelora.config import configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import RUN
from saelora.jobs.acting import check_acting
from saelora.jobs.comparison.folder import results, row_file, write_tables
from saelora.jobs.comparison.plan import Run, entries_named, expand, settings
from saelora.jobs.comparison.recipe import ComparisonRecipe, read_recipe
from saelora.jobs.launch.options import LaunchConfig
from saelora.jobs.run import open_collection
from saelora.locks import locked
from saelora.manifest import write_json
from saelora.named import check_named
from saelora.records import JsonObject
from saelora.reporting import compare as tables
from saelora.reporting.comparison.run import ComparisonRun


class Config(LaunchConfig):
    """Comparison"""

    recipe: str | None = option(None, "YAML file: base options, SAEs, methods (see the guide)", positional=True)
    out: str | None = option(None, "folder for table, figures and runs; never overwritten silently")
    set: list[str] = option([], "KEY=VALUE over the recipe, e.g. seeds=[0] or methods.lora.tokens=5k; repeatable")
    only: list[str] = option([], "run only the entry of this name, and the SAEs it starts from; repeatable")
    resume: bool = option(False, "go on with the comparison in --out; finished runs are kept, also of a changed recipe")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    quiet: bool = option(False, "show no progress")


def compare(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Run every method of a recipe on the same rows, the same held-out rows, the same token policy and precision.

    Each run's figures are on disk as soon as it ends: runs/<id>.json, and all of them in results.json, results.csv and
    results.md, with figures beside. Several processes may work on one ``out``, each on its own entries (``only``); with
    a launcher, each entry is a job.

    Returns:
        {"title", "runs": one dict per finished run, "missing": how many are not, "figures": paths}.

    Raises:
        InputError: bad input, with its remedy; where some runs fail, after all others are done.
        Interrupted: stopped by a signal; the run in hand has been saved.
    """
    config = configured(Config, config, options)
    if not config.recipe:
        raise InputError("no recipe given: name a YAML file, such as recipes/smollm/timing.yaml")
    recipe = read_recipe(Path(config.recipe), config.set)
    runs = expand(recipe)
    for run in runs:
        check_named(settings(run))
    check_acting(config, "compare")
    named = {entry.name for entry in entries_named(recipe, config.only)}
    console = Console(quiet=config.quiet)
    if config.launcher:
        from saelora.jobs.launch.comparing import launched

        return launched(config, recipe, [run for run in runs if run.entry.name in named], runs, console)
    with ExitStack() as held:
        shared = bool(config.only) and not config.overwrite
        folder = open_collection(config, "runs", "comparison", held, shared=shared)
        return _compare(recipe, runs, named, folder, console)


def _compare(recipe: ComparisonRecipe, runs: list[Run], named: set[str], folder: Path, console: Console) -> JsonObject:
    mine = [run for run in runs if run.entry.name in named]
    todo = [run for run in mine if not row_file(folder, run).exists()]
    if len(todo) < len(mine):
        console.say(f"{len(mine) - len(todo)} of {len(mine)} runs are done already")
    console.say(f"{recipe.title}: {len(mine)} runs")
    from saelora.jobs.comparison.runs import run_one
    from saelora.jobs.comparison.session import ComparisonSession  # seconds: after what can be wrong without it

    session = ComparisonSession(recipe, runs, folder, console)
    failures: list[str] = []
    for i, run in enumerate(todo):
        what = f"run {i + 1} of {len(todo)}: {run.entry.name}, {run.budget:,} tokens, seed {run.seed}"

        def say_who(who: str, what: str = what) -> None:
            console.say(f"{what}: another process ({who}) is at it, waiting for it")

        try:
            with locked(folder / "runs", f"{RUN}-{run.id}", wait=say_who):
                if row_file(folder, run).exists():  # an SAE that other entries start from too, made by their process
                    continue
                console.say(what)
                write_json(row_file(folder, run), run_one(session, run))
        except InputError as error:
            failures.append(f"{run.entry.name}, seed {run.seed}: {error}")
            console.say(f"run {i + 1} failed: {error}")
        write_tables(recipe.title, runs, folder)
    drawn = write_tables(recipe.title, runs, folder, draw=True)
    if failures:
        raise InputError(f"{len(failures)} of {len(todo)} runs failed, the rest is in {folder}: {failures[0]}")
    return results(recipe.title, runs, folder, drawn)


def render(results: dict[str, Any]) -> str:
    """Table and findings as a person reads them."""
    missing = [f"{results['missing']} runs are not done yet: repeat with --resume"] if results["missing"] else []
    runs = [ComparisonRun.model_validate(run) for run in results["runs"]]
    table = tables.text_table(runs)
    return "\n".join([results["title"], "", table, "", *tables.words(runs), *missing, *results["figures"]])
