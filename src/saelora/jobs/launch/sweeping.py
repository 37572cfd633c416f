"""A sweep by jobs: each group of points that can share passes is one, and so is training the recipe's own SAEs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from saelora.console import Console
from saelora.jobs.launch.collection import Launched, failed, frozen, handing_out
from saelora.jobs.launch.job import Job
from saelora.jobs.sae_folder import FINISHED
from saelora.jobs.sweep_folder import finish, is_done, results, sae_folder, write_tables
from saelora.jobs.sweep_plan import Point, SweepSpec, group_points, split
from saelora.records import JsonObject

TRAINED = "train-sae"  # the job that trains the recipe's own SAEs


class LaunchedSweep(Launched, Protocol):
    """Options of a sweep that hands out jobs."""

    @property
    def recipe(self) -> str | None: ...
    @property
    def save_adapters(self) -> bool: ...
    @property
    def launcher_points(self) -> int | None: ...
    @property
    def quiet(self) -> bool: ...


def launched(config: LaunchedSweep, recipe: SweepSpec, points: list[Point], named: list[Point]) -> JsonObject:
    """Run the named points by jobs; what ``saelora.sweep`` returns.

    Raises:
        InputError: bad input, with its remedy; where some groups fail, after all others are done.
        Interrupted: stopped by a signal; says what becomes of the jobs.
    """

    def done(folder: Path, job: Job) -> bool:
        if job.name == TRAINED:
            return (sae_folder(recipe) / FINISHED).exists()
        return all(is_done(folder, point, config.save_adapters) for point in points if point.id in job.ids)

    console = Console(quiet=config.quiet)
    with handing_out(config, "points", "sweep", console, done) as (folder, dispatch):
        console.say(f"{config.recipe}: {len(points)} points, by {dispatch.launcher.place}")
        given = {point_id for earlier in dispatch.earlier() for point_id in earlier.job.ids}
        todo = [point for point in named if not is_done(folder, point, config.save_adapters)]
        if len(todo) < len(named):
            console.say(f"{len(named) - len(todo)} of {len(named)} points are done already")
        try:
            jobs = _jobs(config, recipe, [point for point in todo if point.id not in given], folder)
            failures = dispatch.run(jobs)
        finally:
            write_tables(recipe, points, folder)
        drawn = finish(recipe, points, folder)
    if failures:
        raise failed(failures, dispatch.total, "groups", folder)
    return results(recipe, points, folder, drawn)


def _jobs(config: LaunchedSweep, recipe: SweepSpec, todo: Sequence[Point], folder: Path) -> list[Job]:
    if not todo:
        return []
    file, jobs = frozen(folder, "recipe", recipe), []
    if recipe.train_sae is not None and not (sae_folder(recipe) / FINISHED).exists():
        options = frozen(folder, "saes", {"device": todo[0].config.device, **recipe.train_sae})
        trains = ("train-sae", "--config", str(options), "--out", str(sae_folder(recipe).resolve()), "--resume")
        jobs.append(Job(TRAINED, "training the recipe's SAEs", trains, ()))
    needs = tuple(job.name for job in jobs)
    groups = [part for group in group_points(todo) for part in split(group, config.launcher_points or len(group))]
    for i, group in enumerate(groups):
        ids = tuple(point.id for point in group)
        words: tuple[str, ...] = ("sweep", str(file), "--out", str(folder.resolve()), "--resume")
        words += tuple(word for point_id in ids for word in ("--only", point_id))
        words += ("--save-adapters",) if config.save_adapters else ()
        name = hashlib.sha256("".join(ids).encode()).hexdigest()[:12]
        jobs.append(
            Job(name, f"group {i + 1} of {len(groups)}, {len(group)} point{'s' * (len(group) > 1)}", words, ids, needs)
        )
    return jobs
