"""saelora adapt: low-rank adapt a model around its frozen SAEs."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelora.assemble import (
    Assembled,
    DataOptions,
    ModelOptions,
    SAEOptions,
    assemble,
    autocast_dtype,
    read_rows,
    validation_rows,
)
from saelora.config import Count, build, option, to_dict
from saelora.console import Console
from saelora.core.lora import layers_of, lora_config
from saelora.core.splice import splice
from saelora.evals.loss import evaluate_loss
from saelora.evals.samples import continuations, prompts_from
from saelora.jobs.evaluate import measure
from saelora.jobs.run import RunOptions, check_out, processes, run_loop, start
from saelora.manifest import MANIFEST, RESULTS, check_room, describe, environment, read_json, write_json
from saelora.models.loading import pick_device
from saelora.objectives.distill import Branch, Distill, DistillRecipe
from saelora.report.card import adapter_card
from saelora.report.figures import learning_curve
from saelora.report.text import loss_table
from saelora.train.distributed import Group
from saelora.train.loop import Loop, LoopConfig, LoopState, within_reach
from saelora.train.optim import Schedule
from saelora.train.shard import shard_layers
from saelora.train.tracking import Tracker


@dataclass(kw_only=True)
class AdapterOptions:
    """Adapter"""

    rank: int = option(64, "LoRA rank")
    alpha: float | None = option(None, "LoRA alpha, scaling = alpha / rank; default: the rank, so scaling 1")
    placement: str = option(
        "after", "adapted layers: after (above the lowest SAE), all, or layers:13,14 (layers:13-20)"
    )
    dropout: float = option(0.0, "LoRA dropout, on the student only")
    rslora: bool = option(False, "scaling = alpha / sqrt(rank)")
    dora: bool = option(False, "weight-decomposed LoRA")
    init: str = option("default", "LoRA initialisation: default, gaussian or orthogonal")


@dataclass(kw_only=True)
class TrainingOptions:
    """Training"""

    tokens: Count = option(Count(15_000_000), "tokens to adapt on; fewer where the data holds fewer")
    lr: float = option(DistillRecipe.lr, "peak learning rate of AdamW")
    schedule: Schedule = option(DistillRecipe.schedule, "after the warm-up: linear or cosine to zero, or constant")
    warmup: float = option(DistillRecipe.warmup, "share of the run over which lr rises from 0")
    weight_decay: float = option(DistillRecipe.weight_decay, "AdamW weight decay")
    betas: tuple[float, ...] = option(DistillRecipe.betas, "AdamW betas")
    clip: float = option(DistillRecipe.clip, "largest gradient norm; 0 turns clipping off")
    loss: Literal["token_mean", "sequence_sum"] = option(
        DistillRecipe.loss, "KL per token, or summed over a sequence as in the published code"
    )
    history_points: int = option(6, "evaluations along the way, for the learning curve")
    history_tokens: Count = option(Count(4096), "held-out tokens of each of them")
    samples: int = option(0, "sample continuations to write: original, spliced, adapted")


@dataclass(kw_only=True)
class Config(ModelOptions, SAEOptions, DataOptions, AdapterOptions, TrainingOptions, RunOptions):
    """Options of adapt"""


def adapt(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Adapt a model around its SAEs and measure what it bought.

    Writes to ``out``: the PEFT adapter, saelora.json, results.json, metrics.jsonl, a card and the learning curve.

    Returns:
        What results.json holds: ce_base, ce_sae, ce_adapted, ce_adapted_clean (nats per predicted token), gap_closed,
        kl_*, loss_recovered_*, intervals, token counts, seconds, history.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    config = config or build(Config, options)
    group = processes(config)
    group.check_rows(config.batch_rows)
    console = Console(quiet=config.quiet or not group.is_main)
    folder = group.on_main(lambda: check_out(config))
    if config.resume and group.on_main((folder / RESULTS).exists):
        console.say(f"{folder} is finished already; nothing to resume")
        return read_json(folder / RESULTS)
    recipe = recipe_of(config)
    console.say(f"loading {config.model} and {', '.join(config.sae) or 'no SAE'}")
    assembled = assemble(config)
    console.say(f"reading {config.data}")
    rows = group.on_main(lambda: read_rows(config, assembled.loaded, config.tokens, "train", config.seed))
    heldout = group.on_main(lambda: validation_rows(config, assembled.loaded))
    model = adapted_model(config, assembled)
    if config.shard:
        shard_layers(model, pick_device(config.device), group)
    group.on_main(lambda: check_room(folder, 8 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)))
    group.on_main(lambda: start(config, folder))
    with splice(model, assembled.sae_modules, assembled.token_mask) as spliced:
        branches = [Branch("default", spliced, recipe)]
        autocast = autocast_dtype(assembled.loaded)
        objective = Distill(model, branches, n_rows=len(rows.input_ids), autocast=autocast, group=group)
        state = _train(config, console, folder, assembled, objective, rows.input_ids, heldout)
    if group.is_main:
        _save_adapter(model, folder)
    results = _measure(console, assembled, model, heldout, state, group)
    if config.samples:
        console.say("writing sample continuations")
        with splice(model, assembled.sae_modules, assembled.token_mask) as spliced:
            prompts = prompts_from(heldout, config.samples)
            results["samples"] = continuations(model, spliced, assembled.loaded.tokenizer, prompts)
    if group.is_main:
        _write(config, folder, assembled, results, rows.n_documents)
    return results


def render(results: dict[str, Any]) -> str:
    """The results as a person reads them."""
    return loss_table(results)


def recipe_of(config: Config) -> DistillRecipe:
    """The optimisation part of a configuration."""
    return DistillRecipe(
        lr=config.lr,
        schedule=config.schedule,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        betas=config.betas,
        clip=config.clip,
        loss=config.loss,
    )


def adapter_config(config: Config, assembled: Assembled) -> Any:
    """PEFT's configuration of the adapter."""
    layers = layers_of(config.placement, assembled.saes, assembled.anatomy.n_layers)
    peft_config = lora_config(
        assembled.loaded.model,
        layers,
        rank=config.rank,
        alpha=config.rank if config.alpha is None else config.alpha,
        dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        init=config.init,
    )
    return peft_config


def add_adapter(model: Any, config: Config, assembled: Assembled, name: str = "default") -> Any:
    """The model (None: the assembled one, bare) with one more fresh adapter, its weights drawn from the seed."""
    from peft import get_peft_model

    peft_config = adapter_config(config, assembled)
    torch.manual_seed(config.seed)
    if model is None:
        model = get_peft_model(assembled.loaded.model, peft_config, adapter_name=name)
    else:
        model.add_adapter(name, peft_config)
    peft_config.base_model_name_or_path = assembled.loaded.ref  # not the path of this machine's cache
    return model


def adapted_model(config: Config, assembled: Assembled) -> nn.Module:
    """The assembled model with a fresh adapter."""
    return add_adapter(None, config, assembled)


def _train(
    config: Config,
    console: Console,
    folder: Path,
    assembled: Assembled,
    objective: Distill,
    rows: Tensor,
    heldout: Tensor,
) -> LoopState:
    """Run the loop with progress that shows the gap closed so far."""
    n_steps = -(-len(rows) // config.batch_rows)
    points = max(1, config.history_points)
    on_gpu = assembled.loaded.model.device.type != "cpu"
    loop_config = LoopConfig(
        config.batch_rows,
        log_every=10 if on_gpu else 1,
        evaluate_at=tuple(sorted({max(1, round(n_steps * i / points)) for i in range(1, points + 1)})),
        checkpoint_seconds=config.checkpoint_seconds,
    )
    history = _History(assembled, objective, heldout[: max(1, config.history_tokens // heldout.shape[1])])
    with ExitStack() as stack:
        bar = stack.enter_context(console.progress("adapting", rows.numel()))

        def report(row: dict[str, float]) -> None:
            if "gap_closed" in row:
                bar.update(int(row["n_tokens"]), f"gap closed {row['gap_closed']:.1%}")
            else:
                bar.update(int(row["n_tokens"]))

        group = objective.group
        tracker = Tracker(config.track if group.is_main else None, folder, to_dict(config))
        loop = Loop(
            objective, within_reach(rows, objective.device), loop_config, folder, tracker, history, report, group
        )
        return run_loop(loop, "adapt", bar, resume=config.resume)


@dataclass
class _History:
    """Evaluates the adapter on a few held-out rows; the clean and spliced model are measured once."""

    assembled: Assembled
    objective: Distill
    rows: Tensor
    ce_sae: float | None = None

    def __call__(self) -> dict[str, float]:
        with self.objective.runs[0].branch.spliced.disabled():
            found = evaluate_loss(
                self.objective.model,
                self.assembled.sae_modules,
                self.assembled.token_mask,
                self.rows,
                arms=["adapted"] if self.ce_sae is not None else ["sae", "adapted"],
                autocast=autocast_dtype(self.assembled.loaded),
                group=self.objective.group,
            )
        self.ce_sae = found.get("ce_sae", self.ce_sae)
        assert self.ce_sae is not None
        row = {"kl": found["kl_adapted"], "ce": found["ce_adapted"]}
        if self.ce_sae > found["ce_base"]:
            row["gap_closed"] = (self.ce_sae - found["ce_adapted"]) / (self.ce_sae - found["ce_base"])
        return row


def _save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter in PEFT's format; files appear under their names only when whole."""
    part = folder / ".part-adapter"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (part / file).replace(folder / file)
    shutil.rmtree(part)


def _measure(
    console: Console, assembled: Assembled, model: nn.Module, heldout: Tensor, state: LoopState, group: Group
) -> dict[str, Any]:
    """The figures on held-out text, and what they cost."""
    return {
        **measure(console, assembled, model, heldout, group),
        "n_tokens_trained": state.n_tokens,
        "seconds_training": round(state.seconds, 3),
        "tokens_per_second": round(state.n_tokens / max(state.seconds, 1e-9), 1),
        "history": state.history,
    }


def _write(config: Config, folder: Path, assembled: Assembled, results: dict[str, Any], n_documents: int) -> None:
    """Everything beside the adapter; results.json comes last and marks the run as finished."""
    manifest = {
        **describe(assembled),
        "config": to_dict(config),
        "n_documents_trained": n_documents,
        "environment": environment(),
        "metrics": {k: v for k, v in results.items() if isinstance(v, int | float)},
    }
    write_json(folder / MANIFEST, manifest)
    (folder / "README.md").write_text(adapter_card(manifest, results), encoding="utf-8")
    learning_curve(results, folder / "learning_curve.png")
    write_json(folder / RESULTS, results)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
