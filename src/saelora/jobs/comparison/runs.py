"""The runs of a comparison, one at a time: train, measure along the way, count what it cost."""

from typing import Any

from saelora.assemble import assemble, read_rows
from saelora.config import build, to_dict
from saelora.core.splice import splice
from saelora.core.students import Student
from saelora.evals.cached import against_start
from saelora.evals.latent_change import latent_change
from saelora.evals.loss_sums import SAESums
from saelora.files import whole_folder
from saelora.identity import measured_on
from saelora.jobs import train_sae, train_sae_run
from saelora.jobs.comparison.lr_search import learning_rate
from saelora.jobs.comparison.plan import Run
from saelora.jobs.comparison.recipe import student_type
from saelora.jobs.comparison.session import ComparisonSession, curve, means, start_of, students
from saelora.manifest import MANIFEST, describe, environment, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import parse_hookpoint
from saelora.saes.build import fingerprint


def run_one(session: ComparisonSession, run: Run) -> dict[str, Any]:
    """Train and measure one run.

    Returns:
        Plain data: what it is, its curve, its final figures, and what it cost in training seconds, tokens, operations
        and memory. The tables under saelora.reporting.compare are made of these.
    """
    lr, tried = learning_rate(session, run)
    values = {**run.values, **({} if lr is None else {"lr": lr})}
    found = sae_run(session, run, values) if run.entry.kind == "sae" else method_run(session, run, values)
    return {
        "id": run.id,
        "name": run.entry.name,
        "kind": run.entry.kind,
        "method": run.entry.method,
        "objective": found["config"].get("objective"),
        "seed": run.seed,
        "budget": run.budget,
        "lr": found["config"]["lr"],
        "tuning": tried,
        **found,
        "environment": environment(),
    }


def sae_run(session: ComparisonSession, run: Run, values: dict[str, Any]) -> dict[str, Any]:
    """An SAE from scratch, its checkpoints saved for the methods that start from them."""
    config = build(train_sae.Config, values)
    hookpoint = anatomy_of(session.loaded.model).canonical(parse_hookpoint(config.hookpoint[0]))
    token_mask = session.token_mask(config, hookpoint)
    model, evaluator = session.loaded.model, session.evaluator(config, hookpoint)
    objective, rows = train_sae_run.objective_of(config, session.loaded), train_sae_run.rows_of(config, session.loaded)
    n_steps = -(-len(rows) // config.batch_rows)
    keep = {max(1, round(n_steps * share)): share for share in run.entry.checkpoints}
    last: dict[str, Any] = {}

    def evaluate(step: int) -> dict[str, float]:
        if step == 0:
            return {}  # an SAE has no scale before its first tokens
        sae: Any = objective.inference_sae(str(hookpoint))
        if step in keep:
            about = session.about(config, hookpoint, [])
            about["sae"] = {"hookpoint": str(hookpoint), "fingerprint": fingerprint(sae), "share": keep[step]}
            with whole_folder(session.sae_folder(run.id, keep[step])) as part:
                sae.save_model(part)
                write_json(part / MANIFEST, {**about, "run": run.id, "config": to_dict(config)})
        last["saes"] = SAESums.of(evaluator.token_mask, evaluator.rows)
        with splice(model, {hookpoint: sae.to(model.device)}, token_mask) as spliced:
            last["losses"] = evaluator.losses(model, Student(spliced), observe=last["saes"])
        return means(last["losses"])

    state, costed = session.train(run.id, objective, rows, config, run.entry.evaluations, keep, evaluate)
    if not last:
        evaluate(state.step)
    found = last["losses"].compute()
    points = curve(state, costed, n_steps)
    sae = objective.inference_sae(str(hookpoint))
    made = {"ref": f"trained here: {run.entry.name}", "hookpoint": str(hookpoint), "fingerprint": fingerprint(sae)}
    return {
        "start": None,
        "about": measured_on(session.about(config, hookpoint, [made]), evaluator.rows, evaluator.autocast),
        "config": to_dict(config),
        "curve": points,
        "checkpoints": [_checkpoint(points, step / n_steps, share) for step, share in keep.items()],
        "peak_memory_bytes": costed.step_bytes,
        "final": {
            **{"ce_base": found["ce_base"], "ce_sae": None, "ce": found["ce"], "ce_clean": found["ce_base"]},
            **{"kl": found["kl"], "top1": found["top1"], "gap_closed": None},
            **last["saes"].compute()[str(hookpoint)],
            **{"jaccard": None, "rate_correlation": None},
            "n_tokens_evaluated": found["n_tokens_evaluated"],
            "ci95": found["ci95"],
        },
    }


def _checkpoint(points: list[dict[str, float]], at: float, share: float) -> dict[str, float]:
    """What an SAE run had cost at a checkpoint."""
    point = min(points, key=lambda each: abs(each["share"] - at))
    return {"share": share, **{name: point[name] for name in ("n_tokens", "seconds", "model_flops", "ce")}}


def method_run(session: ComparisonSession, run: Run, values: dict[str, Any]) -> dict[str, Any]:
    """A method from an SAE on: an adapter, a map, the SAE itself, or both."""
    start, ref = start_of(session, run)
    config = build(student_type(run.entry), {**values, "sae": [ref]})
    assembled = assemble(config, session.loaded)
    ((hookpoint, _),) = assembled.saes.items()
    rows = read_rows(config, session.loaded, config.tokens, "train", config.seed).input_ids
    evaluator, before = session.evaluator(config, hookpoint), session.spliced_losses(config, assembled)
    last: dict[str, Any] = {}
    with students(session, [config], assembled, len(rows)) as (model, objective):
        student = objective.runs[0].student
        assert student.splice is not None

        def evaluate(step: int) -> dict[str, float]:
            last["saes"] = SAESums.of(evaluator.token_mask, evaluator.rows)
            last["losses"] = evaluator.losses(model, student, observe=last["saes"]) if step else before
            return means(last["losses"])

        n_steps = -(-len(rows) // config.batch_rows)
        state, costed = session.train(run.id, objective, rows, config, run.entry.evaluations, (), evaluate)
        if not last:
            evaluate(state.step)
        clean = evaluator.losses(model, Student(None, student.adapter), [student.splice]) if student.adapter else None
        with splice(model, assembled.sae_modules, assembled.token_mask) as reference:
            firing = latent_change(
                model, reference, student, assembled.token_mask, evaluator.rows, autocast=evaluator.autocast
            )[str(hookpoint)]
    found = against_start(before, last["losses"])
    figures = last["saes"].compute()[str(hookpoint)]
    return {
        "start": start,
        "about": measured_on(describe(assembled), evaluator.rows, evaluator.autocast),
        "config": to_dict(config),
        "curve": curve(state, costed, n_steps),
        "peak_memory_bytes": costed.step_bytes,
        "final": {
            **{"ce_base": found["ce_base"], "ce_sae": found["ce_sae"], "ce": found["ce_adapted"]},
            "ce_clean": found["ce_base"] if clean is None else means(clean)["ce"],
            **{"kl": found["kl_adapted"], "top1": found["top1_adapted"], "gap_closed": found.get("gap_closed")},
            **figures,
            "jaccard": firing.jaccard["value"],
            "rate_correlation": firing.rate_correlation["value"],
            "latents_identical": firing.identical,
            "n_tokens_evaluated": found["n_tokens_evaluated"],
            "ci95": {name.removesuffix("_adapted"): pair for name, pair in found["ci95"].items()},
        },
    }
