"""saelora train-sae: train SAEs on a model's activations, saved in SAELens's native format."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from saelora.assemble import DataOptions, ModelOptions, open_data, token_policy, validation_rows
from saelora.config import Count, build, option, to_dict
from saelora.console import Console
from saelora.data.pack import stream_rows
from saelora.errors import InputError
from saelora.evals.loss import evaluate_loss
from saelora.jobs.run import RunOptions, check_out, run_loop, start
from saelora.manifest import RESULTS, check_room, environment, read_json, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, parse_hookpoint
from saelora.models.loading import LoadedModel, load_model
from saelora.objectives.sae import SAEObjective
from saelora.objectives.sae_recipe import Architecture, SAERecipe
from saelora.train.loop import Loop, LoopConfig
from saelora.train.tracking import Tracker

FINISHED = "training.json"  # written last


@dataclass(kw_only=True)
class SAETrainingOptions:
    """SAE and its training"""

    hookpoint: list[str] = option(
        [], "where to train, e.g. layers.12.resid_post; repeat it to train several SAEs in one pass of the model"
    )
    tokens: Count = option(Count(2_000_000), "tokens to train on; more than the data holds means several epochs")
    architecture: Architecture = option("topk", f"one of {', '.join(get_args(Architecture))}")
    expansion: int = option(8, "d_sae / d_in")
    d_sae: int | None = option(None, "number of latents; overrides --expansion")
    k: int = option(32, "active latents per token (topk), or their mean (batchtopk, matryoshka)")
    lr: float = option(SAERecipe.lr, "peak learning rate")
    warmup: float = option(SAERecipe.warmup, "share of the run over which lr rises from 0")
    decay: float = option(SAERecipe.decay, "share of the run, at its end, over which lr falls to 0")
    batch_tokens: int = option(SAERecipe.batch_tokens, "tokens per optimiser step")
    passes: int = option(SAERecipe.passes, "times each chunk of activations is used")
    dead_after_tokens: Count = option(Count(SAERecipe.dead_after_tokens), "a latent silent for longer is dead")
    aux_coefficient: float = option(SAERecipe.aux_coefficient, "weight of the dead latents' auxiliary loss (topk)")
    l1_coefficient: float = option(SAERecipe.l1_coefficient, "sparsity of standard and gated SAEs")
    l0_coefficient: float = option(SAERecipe.l0_coefficient, "sparsity of jumprelu SAEs")
    exempt: list[str] = option(["bos", "eos", "pad"], "positions not trained on: bos, eos, pad, first, none, token ids")
    save_dtype: str = option("float32", "of the saved weights: float32 or bfloat16")


@dataclass(kw_only=True)
class Config(ModelOptions, DataOptions, SAETrainingOptions, RunOptions):
    """Options of train-sae"""

    context: int = option(512, "tokens per packed row, BOS included")
    batch_rows: int = option(32, "rows per chunk: activations are shuffled within a chunk")
    eval_tokens: Count = option(Count(25_000), "tokens of held-out text for the card's figures")


class StreamedRows:
    """Rows of a corpus as a sequence that is read forwards; after a resume the rows before are passed over."""

    def __init__(self, rows: Iterator[Tensor], n_rows: int):
        self._rows, self._n_rows, self._next = rows, n_rows, 0

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, index: slice, /) -> Tensor:
        start, stop, _ = index.indices(self._n_rows)
        for _ in islice(self._rows, start - self._next):
            pass
        self._next = stop
        return torch.stack(list(islice(self._rows, stop - start)))


def train_sae(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Train SAEs and measure them on held-out text; each is saved under ``out`` (several: ``out/<hookpoint>``).

    Returns:
        Per hookpoint: fvu, l0, dead_frac, ce_base, ce_sae, loss_recovered_sae, with intervals.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    config = config or build(Config, options)
    console = Console(quiet=config.quiet)
    folder = check_out(config)
    if config.resume and (folder / FINISHED).exists():
        console.say(f"{folder} is finished already; nothing to resume")
        return {name: read_json(_target(config, folder, name) / RESULTS) for name in _names(config)}
    if not config.model or not config.hookpoint:
        raise InputError("train-sae needs a MODEL and --hookpoint, e.g. --hookpoint layers.12.resid_post")
    if config.save_dtype not in ("float32", "bfloat16"):
        raise InputError(f"save_dtype: got {config.save_dtype!r}, expected float32 or bfloat16")
    if config.tokens < 1:
        raise InputError(f"tokens is {config.tokens}, expected 1 or more")
    hookpoints = [parse_hookpoint(text) for text in config.hookpoint]
    recipe = _recipe(config)
    loaded = load_model(config.model, device=config.device, dtype=config.dtype, revision=config.revision)
    for hookpoint in hookpoints:
        anatomy_of(loaded.model).site(hookpoint)
    objective = _objective(config, loaded, hookpoints, recipe)
    heldout = validation_rows(config, loaded)
    rows = StreamedRows(
        stream_rows(
            open_data(config),
            loaded.tokenizer,
            context=config.context,
            seed=config.seed,
            validation_fraction=config.validation_fraction,
            epochs=None,
        ),
        max(1, config.tokens // config.context),
    )
    check_room(folder, 20 * sum(anatomy_of(loaded.model).width(h) ** 2 * recipe.expansion * 4 for h in hookpoints))
    start(config, folder)
    loop_config = LoopConfig(config.batch_rows, checkpoint_seconds=config.checkpoint_seconds)
    tracker = Tracker(config.track, folder, to_dict(config))
    with console.progress("training SAE", len(rows) * config.context) as bar:

        def report(row: dict[str, float]) -> None:
            shown = "  ".join(f"{k} {row[k]:.4g}" for k in ("fvu", "l0", "dead_frac") if k in row)
            bar.update(int(row["n_tokens"]), shown or f"loss {row['loss']:.4g}")

        loop = Loop(objective, rows, loop_config, folder, tracker, report=report)
        state = run_loop(loop, "train-sae", bar, resume=config.resume)
    return _finish(config, loaded, objective, heldout, folder, state.seconds, console)


def _recipe(config: Config) -> SAERecipe:
    names = {f for f in SAERecipe.__dataclass_fields__ if f in Config.__dataclass_fields__}
    return SAERecipe(**{name: getattr(config, name) for name in names})


def _objective(config: Config, loaded: LoadedModel, hookpoints: list[Hookpoint], recipe: SAERecipe) -> SAEObjective:
    about = {
        "model_name": config.model,
        "dataset_path": config.data,
        "context_size": config.context,
        "prepend_bos": loaded.tokenizer.bos_token_id is not None,
    }
    return SAEObjective(
        loaded.model,
        hookpoints,
        recipe,
        token_mask=token_policy(config).resolve(loaded.tokenizer),
        device=loaded.model.device,
        n_tokens_total=max(1, config.tokens // config.context) * config.context,
        metadata=about,
    )


def _finish(
    config: Config,
    loaded: LoadedModel,
    objective: SAEObjective,
    heldout: Tensor,
    folder: Path,
    seconds: float,
    console: Console,
) -> dict[str, Any]:
    """Save every SAE, measure it spliced in, write results and cards."""
    token_mask = token_policy(config).resolve(loaded.tokenizer)
    results: dict[str, Any] = {}
    for hookpoint in objective.trainers:
        target = _target(config, folder, str(hookpoint))
        sae = objective.inference_sae(hookpoint).to(getattr(torch, config.save_dtype))
        sae.cfg.dtype = config.save_dtype
        sae.save_model(target)
        measured = sae.float().eval().requires_grad_(False)
        with console.progress(f"evaluating {hookpoint}", heldout.numel()) as bar:
            found = evaluate_loss(loaded.model, {hookpoint: measured}, token_mask, heldout, progress=bar.advance)
        figures = {**found.pop("saes")[str(hookpoint)], **found}
        results[str(hookpoint)] = {**figures, "n_tokens_trained": objective.n_tokens, "seconds_training": seconds}
        write_json(target / RESULTS, results[str(hookpoint)])
        (target / "README.md").write_text(_card(config, hookpoint, sae, results[str(hookpoint)]), encoding="utf-8")
        console.say(
            f"{hookpoint}: fvu {figures['fvu']:.3f}  l0 {figures['l0']:.1f}  dead {figures['dead_frac']:.1%}  "
            f"ce {figures['ce_base']:.3f} -> {figures['ce_sae']:.3f} spliced  saved in {target}"
        )
    write_json(folder / FINISHED, {"config": to_dict(config), "environment": environment()})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results


def _names(config: Config) -> list[str]:
    return [str(parse_hookpoint(text)) for text in config.hookpoint]


def _target(config: Config, folder: Path, name: str) -> Path:
    return folder if len(config.hookpoint) == 1 else folder / name


def _card(config: Config, hookpoint: Hookpoint, sae: Any, figures: dict[str, Any]) -> str:
    """The model card of one SAE: recipe, tokens and what it does to the model."""
    return f"""---
library_name: saelens
---
# SAE of {config.model} at {hookpoint}

A {config.architecture} sparse autoencoder, d_in {sae.cfg.d_in}, d_sae {sae.cfg.d_sae}, trained with saelora
on the activations of {figures["n_tokens_trained"]:,} tokens of {config.data} (BOS, EOS and padding left out).
Load it with `SAE.load_from_disk(folder)` (SAELens) or `--sae folder` (saelora).

| on {figures["n_tokens_evaluated"]:,} held-out tokens | |
|---|---|
| FVU (fraction of variance unexplained) | {figures["fvu"]:.4f} |
| L0 (active latents per token) | {figures["l0"]:.1f} |
| latents that never fired there | {figures["dead_frac"]:.1%} |
| cross entropy, clean model | {figures["ce_base"]:.4f} nats per token |
| cross entropy, SAE spliced in | {figures["ce_sae"]:.4f} nats per token |
| loss recovered against zero ablation | {figures.get("loss_recovered_sae", float("nan")):.4f} |

Recipe: `{config.architecture}`, k {config.k}, lr {config.lr}, warm-up {config.warmup}, decay {config.decay},
{config.batch_tokens} tokens a step, seed {config.seed}, {config.tokens:,} tokens, context {config.context}.
Documents were held out by a hash of their text (fraction {config.validation_fraction}); the SAE saw none of them.
"""
