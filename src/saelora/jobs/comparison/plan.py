"""A comparison's recipe -> runs, in an order in which they can be executed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saelora.config import build
from saelora.errors import InputError
from saelora.jobs.comparison.recipe import ComparisonRecipe, Entry, JobConfig, config_type
from saelora.jobs.spec import compared, digest


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


_Start = tuple[float | None, str | None, str | None]  # start_share, start_run and start_ref of a run


def expand(recipe: ComparisonRecipe) -> list[Run]:
    """All runs, seed by seed: each seed's SAEs come before the methods that start from them."""
    runs: list[Run] = []
    for seed in dict.fromkeys(seed for entry in recipe.entries for seed in entry.seeds):
        for entry in (entry for entry in recipe.entries if seed in entry.seeds):
            saes = [run for run in runs if entry.start and run.entry.name == entry.start.name and run.seed == seed]
            for budget in entry.budgets:
                runs += [_run(recipe, entry, budget, seed, start) for start in _starts(entry, saes)]
    return runs


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


def _starts(entry: Entry, saes: Sequence[Run]) -> list[_Start]:
    """Each start of an entry; ``saes`` are the runs that it may branch off."""
    if entry.start is None or entry.start.name is None:
        return [(None, None, entry.start.ref if entry.start else None)]
    share = entry.start.share
    return [(at, run.id, None) for run in saes for at in (run.entry.checkpoints if share is None else (share,))]


def _run(recipe: ComparisonRecipe, entry: Entry, budget: int, seed: int, start: _Start) -> Run:
    values = {**entry.values, "tokens": budget, "seed": seed}
    if len(entry.lr) == 1:
        values["lr"] = entry.lr[0]
    about = {
        "entry": (entry.name, entry.kind, entry.method, entry.checkpoints),
        "lr": entry.lr,
        "tune": recipe.tune and (recipe.tune.tokens, recipe.tune.eval_tokens) if len(entry.lr) > 1 else None,
        "evaluations": entry.evaluations,
        "start": start,
        "config": compared(build(config_type(entry), values)),
    }
    return Run(digest(about), entry, budget, seed, values, *start)
