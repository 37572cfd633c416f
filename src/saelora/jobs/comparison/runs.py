"""The runs of a comparison, one at a time: train, measure along the way, count what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saelora.assemble import assemble, read_rows
from saelora.config import build, to_dict
from saelora.core.splice import splice
from saelora.core.students import Student
from saelora.evals.cached import against_start
from saelora.evals.latent_change import latent_change
from saelora.evals.loss_sums import LossSums, SAESums
from saelora.files import whole_folder
from saelora.identity import About, SAEId, measured_on
from saelora.jobs import train_sae, train_sae_run
from saelora.jobs.comparison.lr_search import learning_rate
from saelora.jobs.comparison.plan import Run
from saelora.jobs.comparison.recipe import JobConfig, student_type
from saelora.jobs.comparison.session import ComparisonSession, curve, means, start_of, students
from saelora.manifest import MANIFEST, describe, environment, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import parse_hookpoint
from saelora.reporting.comparison.run import ComparisonRun, CurvePoint, Final, Start
from saelora.saes.build import fingerprint


@dataclass(frozen=True)
class Measured:
    """What a run was and came to; of a method, ``start`` is where it began."""

    config: JobConfig
    about: About
    curve: list[CurvePoint]
    final: Final
    peak_memory_bytes: int | None
    start: Start | None = None
    checkpoints: list[CurvePoint] | None = None


def run_one(session: ComparisonSession, run: Run) -> ComparisonRun:
    """Train and measure one run; the tables of saelora.reporting.compare are made of what it returns."""
    lr, tried = learning_rate(session, run)
    values = {**run.values, **({} if lr is None else {"lr": lr})}
    found = sae_run(session, run, values) if run.entry.kind == "sae" else method_run(session, run, values)
    made = ComparisonRun(
        id=run.id,
        name=run.entry.name,
        kind=run.entry.kind,
        method=run.entry.method,
        objective=found.config.objective,
        seed=run.seed,
        budget=run.budget,
        lr=found.config.lr,
        tuning=tried,
        start=found.start,
        about=found.about,
        config=to_dict(found.config),
        curve=found.curve,
        peak_memory_bytes=found.peak_memory_bytes,
        final=found.final,
        environment=environment(),
    )
    return made if found.checkpoints is None else made.model_copy(update={"checkpoints": found.checkpoints})


def sae_run(session: ComparisonSession, run: Run, values: Mapping[str, object]) -> Measured:
    """An SAE from scratch, its checkpoints saved for the methods that start from them."""
    config = build(train_sae.Config, values)
    hookpoint = anatomy_of(session.loaded.model).canonical(parse_hookpoint(config.hookpoint[0]))
    token_mask = session.token_mask(config, hookpoint)
    model, evaluator = session.loaded.model, session.evaluator(config, hookpoint)
    objective, rows = train_sae_run.objective_of(config, session.loaded), train_sae_run.rows_of(config, session.loaded)
    n_steps = -(-len(rows) // (config.batch_rows or 1))
    keep = {max(1, round(n_steps * share)): share for share in run.entry.checkpoints}
    last: list[tuple[LossSums, SAESums]] = []  # of the latest evaluation

    def evaluate(step: int) -> dict[str, float]:
        if step == 0:
            return {}  # an SAE has no scale before its first tokens
        sae: Any = objective.inference_sae(str(hookpoint))
        if step in keep:
            about = session.about(config, hookpoint, []).to_json()
            about["sae"] = {"hookpoint": str(hookpoint), "fingerprint": fingerprint(sae), "share": keep[step]}
            with whole_folder(session.sae_folder(run.id, keep[step])) as part:
                sae.save_model(part)
                write_json(part / MANIFEST, {**about, "run": run.id, "config": to_dict(config)})
        seen = SAESums.of(evaluator.token_mask, evaluator.rows)
        with splice(model, {hookpoint: sae.to(model.device)}, token_mask) as spliced:
            losses = evaluator.losses(model, Student(spliced), observe=seen)
        last[:] = [(losses, seen)]
        return means(losses)

    state, costed = session.train(run.id, objective, rows, config, run.entry.evaluations, keep, evaluate)
    if not last:
        evaluate(state.step)
    ((losses, seen),) = last
    found = losses.compute()
    points = curve(state, costed, n_steps)
    sae = objective.inference_sae(str(hookpoint))
    made = SAEId(ref=f"trained here: {run.entry.name}", hookpoint=str(hookpoint), fingerprint=fingerprint(sae))
    base = found.point["ce_base"]
    final = {
        **{"ce_base": base, "ce_sae": None, "ce": found.point["ce"], "ce_clean": base},
        **{"kl": found.point["kl"], "top1": found.point["top1"], "gap_closed": None},
        **seen.compute()[str(hookpoint)].to_json(),
        **{"jaccard": None, "rate_correlation": None},
        "n_tokens_evaluated": found.n,
        "ci95": found.ci95,
    }
    return Measured(
        config,
        measured_on(session.about(config, hookpoint, [made]), evaluator.rows, evaluator.autocast),
        points,
        Final.model_validate(final),
        costed.step_bytes,
        checkpoints=[_checkpoint(points, step / n_steps, share) for step, share in keep.items()],
    )


def _checkpoint(points: list[CurvePoint], at: float, share: float) -> CurvePoint:
    """What an SAE run had cost at a checkpoint."""
    point = min(points, key=lambda each: abs(each.share - at))
    return CurvePoint(
        share=share, n_tokens=point.n_tokens, seconds=point.seconds, model_flops=point.model_flops, ce=point.ce
    )


def method_run(session: ComparisonSession, run: Run, values: Mapping[str, object]) -> Measured:
    """A method from an SAE on: an adapter, a map, the SAE itself, or both."""
    start, ref = start_of(session, run)
    config = build(student_type(run.entry), {**values, "sae": [ref]})
    assembled = assemble(config, session.loaded)
    ((hookpoint, _),) = assembled.saes.items()
    rows = read_rows(config, session.loaded, config.tokens, "train", config.seed).input_ids
    evaluator, before = session.evaluator(config, hookpoint), session.spliced_losses(config, assembled)
    last: list[tuple[LossSums, SAESums]] = []  # of the latest evaluation
    with students(session, [config], assembled, len(rows)) as (model, objective):
        student = objective.runs[0].student
        assert student.splice is not None

        def evaluate(step: int) -> dict[str, float]:
            seen = SAESums.of(evaluator.token_mask, evaluator.rows)
            losses = evaluator.losses(model, student, observe=seen) if step else before
            last[:] = [(losses, seen)]
            return means(losses)

        n_steps = -(-len(rows) // (config.batch_rows or 1))
        state, costed = session.train(run.id, objective, rows, config, run.entry.evaluations, (), evaluate)
        if not last:
            evaluate(state.step)
        clean = evaluator.losses(model, Student(None, student.adapter), [student.splice]) if student.adapter else None
        with assembled.splice(model) as reference:
            firing = latent_change(
                model, reference, student, assembled.token_mask, evaluator.rows, autocast=evaluator.autocast
            )[str(hookpoint)]
    ((losses, seen),) = last
    found = against_start(before, losses)
    figures = found.point
    final = {
        **{"ce_base": figures["ce_base"], "ce_sae": figures["ce_sae"], "ce": figures["ce_adapted"]},
        "ce_clean": figures["ce_base"] if clean is None else means(clean)["ce"],
        **{"kl": figures["kl_adapted"], "top1": figures["top1_adapted"], "gap_closed": figures.get("gap_closed")},
        **seen.compute()[str(hookpoint)].to_json(),
        "jaccard": firing.jaccard["value"],
        "rate_correlation": firing.rate_correlation["value"],
        "latents_identical": firing.identical,
        "n_tokens_evaluated": found.n,
        "ci95": {name.removesuffix("_adapted"): pair for name, pair in found.ci95.items()},
    }
    return Measured(
        config,
        measured_on(describe(assembled), evaluator.rows, evaluator.autocast),
        curve(state, costed, n_steps),
        Final.model_validate(final),
        costed.step_bytes,
        start,
    )
