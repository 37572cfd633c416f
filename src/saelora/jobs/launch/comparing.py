"""A comparison by jobs: each entry is one, and those that start from an SAE of the recipe wait for that one's."""

import re
from pathlib import Path
from typing import Protocol

from saelora.console import Console
from saelora.jobs.comparison.folder import results, row_file, write_tables
from saelora.jobs.comparison.plan import Run
from saelora.jobs.comparison.recipe import ComparisonRecipe, ComparisonSpec
from saelora.jobs.launch.collection import Launched, failed, frozen, handing_out
from saelora.jobs.launch.job import Job
from saelora.jobs.spec import read
from saelora.records import JsonObject


class LaunchedComparison(Launched, Protocol):
    """Options of a comparison that hands out jobs."""

    @property
    def recipe(self) -> str | None: ...
    @property
    def set(self) -> list[str]: ...


def launched(
    config: LaunchedComparison, recipe: ComparisonRecipe, mine: list[Run], runs: list[Run], console: Console
) -> JsonObject:
    """Do some of the runs by jobs; what ``saelora.compare`` returns.

    Raises:
        InputError: bad input, with its remedy; where some entries fail, after all others are done.
        Interrupted: stopped by a signal; says what becomes of the jobs.
    """

    def done(folder: Path, job: Job) -> bool:
        return all(row_file(folder, run).exists() for run in runs if run.id in job.ids)

    with handing_out(config, "runs", "comparison", console, done) as (folder, dispatch):
        given = {run_id for earlier in dispatch.earlier() for run_id in earlier.job.ids}
        todo = [run for run in mine if not row_file(folder, run).exists()]
        if len(todo) < len(mine):
            console.say(f"{len(mine) - len(todo)} of {len(mine)} runs are done already")
        console.say(f"{recipe.title}: {len(mine)} runs, by {dispatch.launcher.place}")
        try:
            failures = dispatch.run(_jobs(config, [run for run in todo if run.id not in given], folder))
        finally:
            write_tables(recipe.title, runs, folder)
        drawn = write_tables(recipe.title, runs, folder, draw=True)
    if failures:
        raise failed(failures, dispatch.total, "entries", folder)
    return results(recipe.title, runs, folder, drawn)


def _jobs(config: LaunchedComparison, todo: list[Run], folder: Path) -> list[Job]:
    if not todo:
        return []
    file = frozen(folder, "recipe", read(ComparisonSpec, Path(config.recipe or ""), config.set))
    jobs = []
    for name in dict.fromkeys(run.entry.name for run in todo):
        own = [run for run in todo if run.entry.name == name]
        words = ("compare", str(file), "--out", str(folder.resolve()), "--resume", "--only", name)
        start = own[0].entry.start
        needs = (_file_name(start.name),) if start and start.name else ()
        ids = tuple(run.id for run in own)
        jobs.append(Job(_file_name(name), f"{name}, {len(own)} run{'s' * (len(own) > 1)}", words, ids, needs))
    return jobs


def _file_name(entry: str) -> str:
    return re.sub(r"[^\w+-]", lambda found: f"%{ord(found[0]):x}", entry)
