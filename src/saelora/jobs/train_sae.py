"""saelora train-sae: train SAEs on a model's activations, saved in SAELens's native format."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from saelora.assemble import (
    DataOptions,
    ModelOptions,
    autocast_dtype,
    load_frozen,
    open_data,
    token_policy,
    validation_rows,
)
from saelora.config import Count, build, option, to_dict
from saelora.console import Console
from saelora.data.pack import stream_rows
from saelora.errors import InputError
from saelora.evals.loss import evaluate_loss
from saelora.jobs.run import RunOptions, check_out, processes, run_loop, start
from saelora.manifest import RESULTS, check_room, environment, read_json, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import parse_hookpoint
from saelora.models.loading import LoadedModel, pick_device
from saelora.objectives.sae import SAEObjective
from saelora.objectives.sae_e2e import EndToEnd
from saelora.objectives.sae_recipe import Architecture, SAERecipe, variant_name, variant_recipes
from saelora.objectives.sae_start import Start
from saelora.saes.loading import load_sae
from saelora.train.distributed import ALONE, Group
from saelora.train.loop import Loop, LoopConfig
from saelora.train.shard import shard_layers
from saelora.train.tracking import Tracker

FINISHED = "training.json"  # written last
Objective = Literal["local", "e2e", "e2e+downstream"]
_DOWNSTREAM = 1.0
_PROGRESS = {"local": "training SAE", "e2e": "training SAE end to end"}
_PROGRESS["e2e+downstream"] = _PROGRESS["e2e"] + ", with later layers"


@dataclass(kw_only=True)
class SAETrainingOptions:
    """SAE and its training"""

    hookpoint: list[str] = option(
        [], "where to train, e.g. layers.12.resid_post; repeat it to train several SAEs in one pass of the model"
    )
    variant: list[str] = option(
        [],
        "changed options of one SAE, e.g. k=16 or architecture=batchtopk,k=64; repeat it to train several at each "
        "hookpoint in the same pass",
    )
    tokens: Count = option(Count(2_000_000), "tokens to train on; more than the data holds means several epochs")
    objective: Objective = option(
        "local",
        "local: reconstruct the activation; e2e: through the layers above, keep the model's predictions (KL alone); "
        "e2e+downstream: those and the later layers' outputs",
    )
    downstream: float = option(_DOWNSTREAM, "weight of the later layers' error in e2e+downstream")
    start: str | None = option(
        None, "a finished SAE to go on from (topk, standard, jumprelu; references as in adapt's --sae)"
    )
    architecture: Architecture | None = option(
        None, f"one of {', '.join(get_args(Architecture))}; default: topk, or the start's"
    )
    expansion: int | None = option(None, f"d_sae / d_in; default: {SAERecipe.expansion}, or the start's")
    d_sae: int | None = option(None, "number of latents; overrides --expansion")
    k: int | None = option(
        None,
        "active latents per token (topk), or their mean (batchtopk, matryoshka); "
        f"default: {SAERecipe.k}, or the start's",
    )
    lr: float = option(SAERecipe.lr, "peak learning rate")
    warmup: float = option(SAERecipe.warmup, "share of the run over which lr rises from 0")
    decay: float = option(SAERecipe.decay, "share of the run, at its end, over which lr falls to 0")
    batch_tokens: int = option(SAERecipe.batch_tokens, "tokens per optimiser step")
    passes: int = option(SAERecipe.passes, "times each chunk of activations is used; end to end always once")
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
    """Train SAEs and measure them on held-out text; each is saved under ``out``.

    Several hookpoints make folders ``out/<hookpoint>``, variants ``out/<hookpoint>/<variant>``.

    Returns:
        Per hookpoint, or "hookpoint/variant": fvu, l0, dead_frac, ce_base, ce_sae, loss_recovered_sae, with intervals.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    config = config or build(Config, options)
    group = processes(config)
    console = Console(quiet=config.quiet or not group.is_main)
    group.check_rows(config.batch_rows)
    folder = group.on_main(lambda: check_out(config))
    if config.resume and group.on_main((folder / FINISHED).exists):
        console.say(f"{folder} is finished already; nothing to resume")
        return {name: read_json(_target(config, folder, name) / RESULTS) for name in _names(config)}
    _check(config)
    loaded = load_frozen(config)
    for text in config.hookpoint:
        anatomy_of(loaded.model).site(parse_hookpoint(text))
    if config.shard:
        shard_layers(loaded.model, pick_device(config.device), group)
    objective = objective_of(config, loaded, group)
    heldout = group.on_main(lambda: validation_rows(config, loaded))
    rows = rows_of(config, loaded)
    n_weights = sum(group.gather(sum(t.sae.cfg.d_in * t.sae.cfg.d_sae for t in objective.trainers.values())))
    group.on_main(lambda: check_room(folder, 80 * n_weights))
    group.on_main(lambda: start(config, folder))
    loop_config = LoopConfig(config.batch_rows, checkpoint_seconds=config.checkpoint_seconds)
    tracker = Tracker(config.track if group.is_main else None, folder, to_dict(config))
    with console.progress(_PROGRESS[config.objective], len(rows) * config.context) as bar:

        def report(row: dict[str, float]) -> None:
            shown = "  ".join(f"{k} {row[k]:.4g}" for k in ("kl", "fvu", "l0", "dead_frac") if k in row)
            several = f" (mean of {len(objective.recipes)} SAEs)" if len(objective.recipes) > 1 else ""
            bar.update(int(row["n_tokens"]), shown + several)

        loop = Loop(objective, rows, loop_config, folder, tracker, report=report, group=group)
        state = run_loop(loop, "train-sae", bar, resume=config.resume)
    return _finish(config, loaded, objective, heldout, folder, state.seconds, console)


def objective_of(config: Config, loaded: LoadedModel, group: Group = ALONE) -> SAEObjective | EndToEnd:
    """The SAEs that a configuration asks for on a loaded model, and how they are trained; nothing has been seen yet.

    Raises:
        InputError: options that do not fit one another, the model or the start.
    """
    _check(config)
    begin = _start(config)
    about: dict[str, Any] = {
        "model_name": config.model,
        "dataset_path": config.data,
        "context_size": config.context,
        "prepend_bos": loaded.tokenizer.bos_token_id is not None,
    }
    about |= {} if config.objective == "local" else {"training_objective": config.objective}
    about |= {} if begin is None else {"training_start": begin.ref}
    options: dict[str, Any] = {
        "token_mask": token_policy(config).resolve(loaded.tokenizer),
        "device": loaded.model.device,
        "n_tokens_total": max(1, config.tokens // config.context) * config.context,
        "metadata": about,
        "begin": begin,
        "group": group,
    }
    hookpoints, recipes = [parse_hookpoint(text) for text in config.hookpoint], _recipes(config, begin)
    if config.objective == "local":
        return SAEObjective(loaded.model, hookpoints, recipes, **options)
    weight = config.downstream if config.objective == "e2e+downstream" else 0.0
    autocast = autocast_dtype(loaded)
    return EndToEnd(loaded.model, hookpoints, recipes, downstream=weight, autocast=autocast, **options)


def rows_of(config: Config, loaded: LoadedModel) -> StreamedRows:
    """The rows that a configuration trains on, read as they are needed.

    Raises:
        InputError: no data, or none that can be read.
    """
    rows = stream_rows(
        open_data(config),
        loaded.tokenizer,
        context=config.context,
        seed=config.seed,
        validation_fraction=config.validation_fraction,
        epochs=None,
    )
    return StreamedRows(rows, max(1, config.tokens // config.context))


def _check(config: Config) -> None:
    """Raise InputError for what can be seen to be wrong before anything is loaded."""
    if not config.model or not config.hookpoint:
        raise InputError("train-sae needs a MODEL and --hookpoint, e.g. --hookpoint layers.12.resid_post")
    if config.save_dtype not in ("float32", "bfloat16"):
        raise InputError(f"save_dtype: got {config.save_dtype!r}, expected float32 or bfloat16")
    if config.tokens < 1:
        raise InputError(f"tokens is {config.tokens}, expected 1 or more")
    if config.objective == "e2e+downstream" and not 0 < config.downstream < float("inf"):
        raise InputError(f"downstream is {config.downstream}, expected a number above 0: or use --objective e2e")
    if config.objective != "e2e+downstream" and config.downstream != _DOWNSTREAM:
        raise InputError(
            f"downstream is {config.downstream}, but objective {config.objective} has no such term: "
            "use --objective e2e+downstream, or leave it out"
        )
    if config.objective != "local" and config.shard:
        raise InputError(
            f"--objective {config.objective} does not run on sharded layers, since each process runs the model for its "
            "own SAEs: leave out --shard"
        )
    for text in config.hookpoint:
        parse_hookpoint(text)
    if config.start is not None and len(config.hookpoint) != 1:
        raise InputError(f"start {config.start} is one SAE, got {len(config.hookpoint)} hookpoints: give one")
    _recipes(config, None)


def _start(config: Config) -> Start | None:
    return None if config.start is None else Start.of(load_sae(config.start, hookpoint=config.hookpoint[0]))


def _recipes(config: Config, begin: Start | None) -> dict[str, SAERecipe]:
    """Recipes by variant; what is not given is the start's, or the default."""
    kinds = {name: kind for name, kind in get_type_hints(Config).items() if name in SAERecipe.__dataclass_fields__}
    given = {name: value for name in kinds if (value := getattr(config, name)) is not None}
    if begin is not None:
        like_start = {"architecture": begin.architecture, "k": begin.k}
        like_start |= {} if "expansion" in given else {"d_sae": begin.d_sae}
        given = {**{name: value for name, value in like_start.items() if value is not None}, **given}
    return variant_recipes(config.variant, SAERecipe(**given), kinds)


def _finish(
    config: Config,
    loaded: LoadedModel,
    objective: SAEObjective | EndToEnd,
    heldout: Tensor,
    folder: Path,
    seconds: float,
    console: Console,
) -> dict[str, Any]:
    """Save every SAE, measure it spliced in, write results and cards."""
    token_mask = token_policy(config).resolve(loaded.tokenizer)
    results: dict[str, Any] = {}
    group = objective.group
    for hookpoint, name in ((hookpoint, name) for hookpoint, names in objective.names.items() for name in names):
        target = _target(config, folder, name)
        sae = objective.inference_sae(name).to(getattr(torch, config.save_dtype))
        sae.cfg.dtype = config.save_dtype
        if group.is_main:
            sae.save_model(target)
        measured = sae.to(objective.device).float().eval().requires_grad_(False)
        with console.progress(f"evaluating {name}", heldout.numel()) as bar:
            found = evaluate_loss(
                loaded.model, {hookpoint: measured}, token_mask, heldout, progress=bar.advance, group=group
            )
        figures = {**found.pop("saes")[str(hookpoint)], **found}
        results[name] = {**figures, "n_tokens_trained": objective.n_tokens, "seconds_training": seconds}
        if group.is_main:
            write_json(target / RESULTS, results[name])
            card = _card(config, name, objective.recipes[name], sae, results[name])
            (target / "README.md").write_text(card, encoding="utf-8")
        console.say(
            f"{name}: fvu {figures['fvu']:.3f}  l0 {figures['l0']:.1f}  dead {figures['dead_frac']:.1%}  "
            f"ce {figures['ce_base']:.3f} -> {figures['ce_sae']:.3f} spliced  saved in {target}"
        )
    if group.is_main:
        write_json(folder / FINISHED, {"config": to_dict(config), "environment": environment()})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results


def _names(config: Config) -> list[str]:
    hookpoints = [str(parse_hookpoint(text)) for text in config.hookpoint]
    return [f"{h}/{variant_name(text)}" for h in hookpoints for text in config.variant] or hookpoints


def _target(config: Config, folder: Path, name: str) -> Path:
    return folder if len(config.hookpoint) == 1 and not config.variant else folder / name


def _card(config: Config, name: str, recipe: SAERecipe, sae: Any, figures: dict[str, Any]) -> str:
    """The model card of one SAE: recipe, tokens and what it does to the model."""
    hookpoint, _, variant = name.partition("/")
    passes = recipe.passes if config.objective == "local" else 1
    title = f"SAE of {config.model} at {hookpoint}" + (f", variant {variant}" if variant else "")
    return f"""---
library_name: saelens
---
# {title}

A {recipe.architecture} sparse autoencoder, d_in {sae.cfg.d_in}, d_sae {sae.cfg.d_sae}, trained with saelora
on the activations of {figures["n_tokens_trained"]:,} tokens of {config.data} (BOS, EOS and padding left out).
{_how(config)}Load it with `SAE.load_from_disk(folder)` (SAELens) or `--sae folder` (saelora).

| on {figures["n_tokens_evaluated"]:,} held-out tokens | |
|---|---|
| FVU (fraction of variance unexplained) | {figures["fvu"]:.4f} |
| L0 (active latents per token) | {figures["l0"]:.1f} |
| latents that never fired there | {figures["dead_frac"]:.1%} |
| cross entropy, clean model | {figures["ce_base"]:.4f} nats per token |
| cross entropy, SAE spliced in | {figures["ce_sae"]:.4f} nats per token |
| loss recovered against zero ablation | {figures.get("loss_recovered_sae", float("nan")):.4f} |

Recipe: `{recipe.architecture}`, k {recipe.k}, lr {recipe.lr}, warm-up {recipe.warmup}, decay {recipe.decay},
{recipe.batch_tokens} tokens a step, passes {passes}, seed {recipe.seed} (of rows {config.seed}),
{config.tokens:,} tokens, context {config.context}. cfg.json holds it whole.
Documents were held out by a hash of their text (fraction {config.validation_fraction}); the SAE saw none of them.
"""


def _how(config: Config) -> str:
    """The card's lines on what was optimised and from where, where that is not the usual."""
    how = f"It went on from {config.start}.\n" if config.start is not None else ""
    if config.objective == "local":
        return how
    later = f" and its later layers' outputs (weight {config.downstream:g})" if "downstream" in config.objective else ""
    return f"Trained end to end: the model that runs through it is to keep its predictions (KL){later}.\n" + how
