"""The learning rate of each method of a comparison, chosen on rows that are never reported."""

import math
from dataclasses import asdict
from typing import Any

from saelora.assemble import assemble, read_rows
from saelora.config import build
from saelora.core.splice import splice
from saelora.core.students import Student
from saelora.jobs import train_sae, train_sae_run
from saelora.jobs.comparison.plan import Run
from saelora.jobs.comparison.recipe import student_type
from saelora.jobs.comparison.session import ComparisonSession, means, start_of, students
from saelora.jobs.spec import digest
from saelora.manifest import read_json, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import parse_hookpoint
from saelora.reporting.comparison.run import Tried
from saelora.reporting.format import finite

SEED = 1_000_003  # of the rows that rates are tried on, in an order that no run has


def learning_rate(session: ComparisonSession, run: Run) -> tuple[float | None, list[Tried] | None]:
    """The learning rate of a run's entry, and how each one did where several were tried.

    All are tried side by side, on the recipe's tune.tokens or a tenth of the entry's largest budget, whichever is more,
    from the entry's first seed and last checkpoint; the lowest cross entropy on tune.eval_tokens of held-out text
    wins. Kept in tuning/ for the entry's other runs.

    Returns:
        None for the job's own default, and None where nothing was tried.
    """
    entry, tune = run.entry, session.recipe.tune
    if len(entry.lr) < 2 or tune is None:
        return (entry.lr[0] if entry.lr else None), None
    shared = {key: value for key, value in asdict(entry).items() if key not in ("seeds", "evaluations")}
    key = digest({"entry": shared, "tune": dict(tune)})
    file = session.folder / "tuning" / f"{key}.json"
    if not file.exists():
        session.console.say(f"choosing lr of {entry.name} among {', '.join(f'{lr:g}' for lr in entry.lr)}")
        n_tokens = max(tune.tokens, max(entry.budgets) // 10)
        tried = (_try_saes if entry.kind == "sae" else _try_methods)(session, run, n_tokens)
        found = [Tried(lr=lr, ce=ce) for lr, ce in zip(entry.lr, tried, strict=True)]
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"name": entry.name, "n_tokens": n_tokens, "tried": found})
    found = [Tried.model_validate(each) for each in read_json(file)["tried"]]
    return min(found, key=lambda each: math.inf if each.ce is None else each.ce).lr, found


def _try_saes(session: ComparisonSession, run: Run, n_tokens: int) -> list[float | None]:
    names = [f"lr={lr!r}" for lr in run.entry.lr]
    values = {**run.values, "variant": names, "tokens": n_tokens, "seed": SEED}
    config = build(train_sae.Config, values)
    model = session.loaded.model
    hookpoint = anatomy_of(model).canonical(parse_hookpoint(config.hookpoint[0]))
    evaluator = session.evaluator(config, hookpoint, tuning=True)
    objective, rows = train_sae_run.objective_of(config, session.loaded), train_sae_run.rows_of(config, session.loaded)
    session.train(f"tuning-{run.id}", objective, rows, config)
    found = []
    for name in names:
        sae: Any = objective.inference_sae(f"{hookpoint}/{name}")
        with splice(model, {hookpoint: sae.to(model.device)}, session.token_mask(config, hookpoint)) as spliced:
            found.append(finite(means(evaluator.losses(model, Student(spliced)))["ce"]))
    return found


def _try_methods(session: ComparisonSession, run: Run, n_tokens: int) -> list[float | None]:
    first = [each for each in session.runs if each.entry is run.entry and each.seed == run.entry.seeds[0]][-1]
    _, ref = start_of(session, first)
    values = {**run.values, "sae": [ref], "tokens": n_tokens, "seed": SEED}
    configs = [build(student_type(run.entry), {**values, "lr": lr}) for lr in run.entry.lr]
    assembled = assemble(configs[0], session.loaded)
    rows = read_rows(configs[0], session.loaded, n_tokens, "train", SEED).input_ids
    evaluator = session.evaluator(configs[0], next(iter(assembled.saes)), tuning=True)
    with students(session, configs, assembled, len(rows)) as (model, objective):
        session.train(f"tuning-{run.id}", objective, rows, configs[0])
        every = [one.student for one in objective.runs]
        splices = [student.splice for student in every if student.splice is not None]
        return [finite(means(evaluator.losses(model, student, splices))["ce"]) for student in every]
