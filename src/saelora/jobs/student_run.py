"""The run that every method shares: read, train, save, measure, write."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from saelora.assemble import Assembled, assemble, autocast_dtype, read_rows, validation_rows
from saelora.config import to_dict
from saelora.console import Console
from saelora.core.group import Group
from saelora.core.transcoding import transcoder_in
from saelora.evals.loss import evaluate_loss
from saelora.evals.loss_result import RunResult
from saelora.evals.reading import doubts, fvu_by_site
from saelora.evals.samples import continuations, prompts_from
from saelora.evals.spliced import SplicedModel
from saelora.files import write_whole
from saelora.identity import measured_on
from saelora.jobs.evaluate import measure
from saelora.jobs.run import start
from saelora.jobs.student_folder import manifest_of, save_adapter, save_saes
from saelora.jobs.students import frozen_and_tuned, open_branch, reach, student_model
from saelora.jobs.training import evenly, repeat_command, train
from saelora.jobs.training_options import ADAPTED, StudentConfig, with_batch_rows
from saelora.manifest import MANIFEST, RESULTS, TrainedSAE, check_room, describe, write_json
from saelora.models.adapters import adapter_fingerprint
from saelora.models.compiling import compiling_pays
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import pick_device
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.fitting import fit_step
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.objectives.useful import Share, matrix_rate, useful_flops
from saelora.reporting.card import card
from saelora.reporting.figures import learning_curve
from saelora.reporting.outcome import outcome
from saelora.saes.suites import hint
from saelora.train.loop import LoopState
from saelora.train.shard import shard_layers
from saelora.train.tracking import Tracker

SAEs = dict[Hookpoint, Any]


def train_and_measure(
    config: StudentConfig, command: str, console: Console, folder: Path, group: Group, held: ExitStack
) -> RunResult:
    """The run of ``train_student``, whose arguments have been checked as far as they can be without a model.

    Args:
        command: the one to repeat.
        folder: where everything goes; made here.
        group: the processes that work on it.
        held: closes the folder's lock, when everything is written.

    Returns:
        What results.json is to hold.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    device = pick_device(config.device)
    config = with_batch_rows(config, device.type)
    group.check_rows(config.batch_rows or 1)
    assembled = assemble(config)
    console.say(f"reading {config.data}")
    rows = group.on_main(lambda: read_rows(config, assembled.loaded, config.tokens, "train", config.seed))
    heldout = group.on_main(lambda: validation_rows(config, assembled.loaded))
    for told in (reach(config, assembled), hint(config.exempt, assembled.saes.values())):
        if told:
            console.say(told)
    if any(map(transcoder_in, assembled.sae_modules.values())):
        frozen = assembled.loaded.model, assembled.sae_modules, assembled.token_mask
        for line in doubts(fvu_by_site(*frozen, heldout, autocast_dtype(assembled.loaded))):
            console.say(line)
    model: Any = student_model(None, config, assembled, "default")
    if config.shard:
        shard_layers(model, device, group)
    with ExitStack() as stack:
        branch = open_branch(model, config, assembled, "default", stack)
        tuned = [sae for sae in branch.spliced.saes.values() if isinstance(sae, TrainableSAE)]
        weights = [p for module in (model, *tuned) for p in module.parameters() if p.requires_grad]
        group.on_main(lambda: check_room(folder, 8 * 4 * sum(p.numel() for p in weights)))
        objective = _objective(config, console, assembled, model, branch, rows.input_ids, group)
        group.on_main(lambda: start(config, folder, RESULTS, held))
        state = _train(config, command, console, folder, assembled, objective, rows.input_ids, heldout)
    saes = {h: sae.export() for h, sae in branch.spliced.saes.items() if isinstance(sae, TrainableSAE)}
    saved = group.on_main(lambda: _save(model, config, assembled, saes, folder, state.n_tokens))
    found: dict[str, object] = _measured(config, console, assembled, model, saes, heldout, state, group)
    if objective.rows_at_once is not None:
        found["rows_at_once"] = objective.rows_at_once
    if config.samples:
        console.say("writing sample continuations")
        found["samples"] = _samples(config, assembled, model, saes, heldout)
    about = measured_on(describe(assembled), heldout, autocast_dtype(assembled.loaded))
    if saved:
        about = about.having(tuned_saes={sae.hookpoint: sae.fingerprint for sae in saved})
    adapter = group.on_main(lambda: adapter_fingerprint(folder))
    if adapter:
        about = about.having(adapter=adapter)
    results = RunResult.model_validate({**found, "about": about})
    if group.is_main:
        _write(config, folder, assembled, results, rows.n_documents, saved)
    return results


def _objective(
    config: StudentConfig,
    console: Console,
    assembled: Assembled,
    model: nn.Module,
    branch: Branch,
    rows: Tensor,
    group: Group,
) -> Distill:
    """The objective, its steps fitted to memory and, where the run is long enough, compiled."""
    auto = config.compile == "auto" and not config.shard  # compiled layers are not tested sharded
    objective = Distill(
        model,
        [branch],
        n_rows=len(rows),
        autocast=autocast_dtype(assembled.loaded),
        group=group,
        graph=config.graph,
        compiled=auto and compiling_pays(model, pick_device(config.device), rows.numel()),
        say=console.say,
    )
    if config.compile != "on":  # another number of rows would be compiled anew
        fit_step(objective, rows[: config.batch_rows], console.say, group)
    return objective


def _train(
    config: StudentConfig,
    command: str,
    console: Console,
    folder: Path,
    assembled: Assembled,
    objective: Distill,
    rows: Tensor,
    heldout: Tensor,
) -> LoopState:
    """Run the loop with progress that shows the gap closed so far."""
    history = _History(assembled, objective, heldout[: max(1, config.history_tokens // heldout.shape[1])])
    group = objective.group

    share = _share(objective, rows.shape[1])
    said = {"gap": "", "share": ""}

    def note(row: dict[str, float]) -> str | None:
        if "gap_closed" in row:
            said["gap"] = f"gap closed {row['gap_closed']:.1%}"
        said["share"] = share.of(row) or said["share"]
        return ", ".join(filter(None, said.values())) or None

    return train(
        objective,
        rows,
        config,
        folder,
        console,
        device=objective.device,
        label="finetuning" if config.method == "sae" else "adapting",
        note=note,
        advice=repeat_command(command),
        evaluate=lambda step: history(),
        evaluate_at=evenly(len(rows), config.batch_rows or 1, max(1, config.history_points)),
        tracker=Tracker(config.track if group.is_main else None, folder, to_dict(config)),
        resume=config.resume,
        group=group,
    )


def _share(objective: Distill, context: int) -> Share:
    """What progress says of the GPU's matrix rate; on other devices nothing."""
    device = objective.device
    flops = useful_flops(objective, context) if device.type == "cuda" and objective.group.world == 1 else None
    dtype = objective.autocast_dtype or next(objective.model.parameters()).dtype
    return Share(flops, lambda: matrix_rate(device, dtype))


@dataclass
class _History:
    """Evaluates the student on a few held-out rows; the clean and spliced model are measured once."""

    assembled: Assembled
    objective: Distill
    rows: Tensor
    ce_sae: float | None = None

    def __call__(self) -> dict[str, float]:
        branch, frozen = self.objective.runs[0].branch, self.assembled.sae_modules
        with branch.spliced.disabled():
            found = evaluate_loss(
                self.objective.model,
                branch.spliced.saes,
                self.assembled.token_mask,
                self.rows,
                arms=["adapted"] if self.ce_sae is not None else ["sae", "adapted"],
                autocast=autocast_dtype(self.assembled.loaded),
                group=self.objective.group,
                reference=frozen if self.objective.runs[0].tuned else None,
                check=False,  # the loop has, or does before its first step
                replacement=self.assembled.replacement,
            )
        self.ce_sae = found.get("ce_sae", self.ce_sae)
        assert self.ce_sae is not None
        row: dict[str, float] = {"kl": found["kl_adapted"], "ce": found["ce_adapted"]}
        if self.ce_sae > found["ce_base"]:
            row["gap_closed"] = (self.ce_sae - found["ce_adapted"]) / (self.ce_sae - found["ce_base"])
        return row


def _save(
    model: Any, config: StudentConfig, assembled: Assembled, saes: SAEs, folder: Path, n_tokens: int
) -> list[TrainedSAE]:
    """Write what was trained; returns what the manifest says of the SAEs."""
    if config.method in ADAPTED:
        save_adapter(model, folder)
    if not saes:
        return []
    about = {"method": config.method, "objective": config.objective, "model": config.model, "n_tokens": n_tokens}
    return save_saes(saes, assembled, about, folder, "" if config.method == "sae" else "sae")


def _measured(
    config: StudentConfig,
    console: Console,
    assembled: Assembled,
    model: nn.Module,
    saes: SAEs,
    heldout: Tensor,
    state: LoopState,
    group: Group,
) -> dict[str, object]:
    """The figures on held-out text, and what they cost: fields of a ``RunResult``."""
    found = measure(console, assembled, model, heldout, group, saes)
    return {
        "method": config.method,
        "status": outcome(found),
        **found.to_json(),
        "n_tokens_trained": state.n_tokens,
        "seconds_training": round(state.seconds, 3),
        "tokens_per_second": round(state.n_tokens / max(state.seconds, 1e-9), 1),
        "history": state.history,
    }


def _samples(
    config: StudentConfig, assembled: Assembled, model: nn.Module, saes: SAEs, heldout: Tensor
) -> list[dict[str, str]]:
    prompts = prompts_from(heldout, config.samples)
    with frozen_and_tuned(model, assembled, saes) as (spliced, adapted):
        subject = SplicedModel(model, spliced, assembled.token_mask, adapted=adapted)
        return continuations(subject, assembled.loaded.tokenizer, prompts)


def _write(
    config: StudentConfig,
    folder: Path,
    assembled: Assembled,
    results: RunResult,
    n_documents: int,
    saved: list[TrainedSAE],
) -> None:
    """Everything beside what was trained; results.json comes last and marks the run as finished."""
    adapter = None if results.about is None else results.about.adapter
    manifest = manifest_of(config, assembled, results, adapter=adapter, saved=saved, n_documents=n_documents)
    write_json(folder / MANIFEST, manifest)
    write_whole(folder / "README.md", card(manifest, results).encode())
    learning_curve(results, folder / "learning_curve.png")
    write_json(folder / RESULTS, results)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
