"""A comparison's recipe -> runs, in an order in which they can be executed. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saelora.config import build
from saelora.errors import InputError
from saelora.jobs.comparison.recipe import (
    ComparisonRecipe,
    Entry,
    JobConfig,
    Start,
    Tune,
    config_type,
    read_recipe,
    student_type,
)
from saelora.jobs.recipe_file import compared, digest

__all__ = [
    "ComparisonRecipe",
    "Entry",
    "JobConfig",
    "Run",
    "Start",
    "Tune",
    "config_type",
    "entries_named",
    "expand",
    "read_recipe",
    "settings",
    "student_type",
]


@dataclass(frozen=True)
class Run:
    """One training run.

    id: a hash of all that bears on its result.  start_run: id of the SAE run of the same seed that it branches off,
    after start_share of that run's tokens.  start_ref: or the SAE that it starts from.  values: all options of its job,
    tokens and seed included; without lr where that is to be chosen among entry.lr.
    """

    id: str
    entry: Entry
    budget: int
    seed: int
    values: dict[str, Any]
    start_share: float | None = None
    start_run: str | None = None
    start_ref: str | None = None


def expand(recipe: ComparisonRecipe, source: str) -> list[Run]:
    """All runs, seed by seed: each seed's SAEs come before the methods that start from them.

    Raises:
        InputError: two runs that are the same.
    """
    runs: dict[str, Run] = {}
    seeds = dict.fromkeys(seed for entry in recipe.entries for seed in entry.seeds)
    for seed in seeds:
        for entry in recipe.entries:
            if seed not in entry.seeds:
                continue
            for budget in entry.budgets:
                for start in _starts(entry, seed, recipe, runs):
                    run = _run(recipe, entry, budget, seed, *start)
                    if run.id in runs:
                        raise InputError(f"{source} holds a run twice: {entry.name}, {budget} tokens, seed {seed}")
                    runs[run.id] = run
    return list(runs.values())


def settings(run: Run) -> JobConfig:
    """The options of a run's job; where it starts from a run of this comparison, that one's SAE is not there yet."""
    if run.entry.kind == "sae":
        return build(config_type(run.entry), run.values)
    return build(config_type(run.entry), {**run.values, "sae": [run.start_ref or "of-this-comparison"]})


def entries_named(recipe: ComparisonRecipe, only: Sequence[str]) -> list[Entry]:
    """The entries of these names, and the SAEs that they start from; all of them for no names.

    Raises:
        InputError: there is no entry of such a name.
    """
    known = [entry.name for entry in recipe.entries]
    for name in only:
        if name not in known:
            raise InputError(f"there is no {name!r} to run: expected one of {', '.join(known)}")
    needed = {*only, *(entry.start.name for entry in recipe.entries if entry.start and entry.name in only)}
    return [entry for entry in recipe.entries if not only or entry.name in needed]


def _starts(
    entry: Entry, seed: int, recipe: ComparisonRecipe, runs: Mapping[str, Run]
) -> list[tuple[float | None, str | None, str | None]]:
    """(share, run, reference) of each start of an entry."""
    if entry.start is None or entry.start.name is None:
        return [(None, None, entry.start.ref if entry.start else None)]
    share = entry.start.share
    sae = next(each for each in recipe.entries if each.name == entry.start.name)
    off = [run.id for run in runs.values() if run.entry.name == sae.name and run.seed == seed]
    return [(each, run, None) for run in off for each in (sae.checkpoints if share is None else (share,))]


def _run(
    recipe: ComparisonRecipe,
    entry: Entry,
    budget: int,
    seed: int,
    share: float | None,
    run: str | None,
    ref: str | None,
) -> Run:
    values = {**entry.values, "tokens": budget, "seed": seed}
    if len(entry.lr) == 1:
        values["lr"] = entry.lr[0]
    tune = recipe.tune if len(entry.lr) > 1 else None
    about = {
        "entry": (entry.name, entry.kind, entry.method, entry.checkpoints),
        "lr": entry.lr,
        "tune": tune and (tune.tokens, tune.eval_tokens),
        "evaluations": entry.evaluations,
        "start": (share, run, ref),
        "config": compared(build(config_type(entry), values)),
    }
    return Run(digest(about), entry, budget, seed, values, share, run, ref)
