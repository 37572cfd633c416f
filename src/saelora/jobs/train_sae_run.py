"""The run of train-sae, once its options have been checked: read, train, save, measure."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saelora.assemble import autocast_dtype, load_frozen, open_data, token_mask_of, validation_rows
from saelora.config import to_dict
from saelora.console import Console
from saelora.core.group import ALONE, Group
from saelora.data.pack import stream_rows
from saelora.data.streamed import StreamedRows
from saelora.evals.loss_result import SAEResult
from saelora.jobs import training
from saelora.jobs.run import start
from saelora.jobs.sae_folder import FINISHED, finish
from saelora.jobs.train_sae import Config, check, recipes_of
from saelora.manifest import check_room
from saelora.models.anatomy import Anatomy, anatomy_of
from saelora.models.hookpoints import Hookpoint, parse_hookpoint
from saelora.models.loading import LoadedModel, pick_device
from saelora.sae_training.end_to_end import EndToEnd
from saelora.sae_training.local import SAEObjective
from saelora.sae_training.warm_start import Start
from saelora.saes.loading import load_sae
from saelora.saes.sets import chosen_layers
from saelora.train.shard import shard_layers
from saelora.train.tracking import Tracker

_PROGRESS = {"local": "training SAE", "e2e": "training SAE end to end"}
_PROGRESS["e2e+downstream"] = _PROGRESS["e2e"] + ", with later layers"


def train(config: Config, console: Console, folder: Path, group: Group, held: ExitStack) -> dict[str, SAEResult]:
    """The run of ``saelora.jobs.train_sae.train_sae``, whose options have been checked.

    Args:
        held: closes the folder's lock, when everything is written.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    loaded = load_frozen(config)
    for hookpoint in hookpoints_of(config, anatomy_of(loaded.model)):
        anatomy_of(loaded.model).site(hookpoint)
    if config.shard:
        shard_layers(loaded.model, pick_device(config.device), group)
    objective = objective_of(config, loaded, group)
    heldout = group.on_main(lambda: validation_rows(config, loaded))
    rows = rows_of(config, loaded)
    n_weights = sum(group.gather(sum(t.sae.cfg.d_in * t.sae.cfg.d_sae for t in objective.trainers.values())))
    group.on_main(lambda: check_room(folder, 80 * n_weights))
    group.on_main(lambda: start(config, folder, FINISHED, held))

    def note(row: dict[str, float]) -> str:
        names = ("kl", "fvu", "relative_error", "top_variance", "l0", "dead_frac")
        several = f" (mean of {len(objective.recipes)} SAEs)" if len(objective.recipes) > 1 else ""
        return "  ".join(f"{name} {row[name]:.4g}" for name in names if name in row) + several

    state = training.train(
        objective,
        rows,
        config,
        folder,
        console,
        device=loaded.model.device,
        label=_PROGRESS[config.objective],
        note=note,
        advice=training.repeat_command("train-sae"),
        tracker=Tracker(config.track if group.is_main else None, folder, to_dict(config)),
        resume=config.resume,
        group=group,
    )
    return finish(config, loaded, objective, heldout, folder, state.seconds, console)


def hookpoints_of(config: Config, anatomy: Anatomy) -> list[Hookpoint]:
    """Where a configuration trains, as it is written; InputError for a layer that the model does not have."""
    layers = config.transcoder_layers
    if layers is None:
        return [parse_hookpoint(text) for text in config.hookpoint]
    return [Hookpoint(layer, "mlp_out") for layer in chosen_layers(layers, anatomy.n_layers)]


def objective_of(config: Config, loaded: LoadedModel, group: Group = ALONE) -> SAEObjective | EndToEnd:
    """The SAEs that a configuration asks for on a loaded model, and how they are trained; nothing has been seen yet.

    Raises:
        InputError: options that do not fit one another, the model or the start.
    """
    check(config)
    begin = _start(config)
    about: dict[str, object] = {
        "model_name": config.model,
        "dataset_path": config.data,
        "context_size": config.context,
        "prepend_bos": loaded.tokenizer.bos_token_id is not None,
    }
    about |= {} if config.objective == "local" else {"training_objective": config.objective}
    about |= {} if begin is None else {"training_start": begin.ref}
    anatomy = anatomy_of(loaded.model)
    hookpoints = [anatomy.canonical(hookpoint) for hookpoint in hookpoints_of(config, anatomy)]
    options: dict[str, Any] = {
        "token_mask": token_mask_of(config.exempt, config, loaded, hookpoints),
        "device": loaded.model.device,
        "n_tokens_total": max(1, config.tokens // config.context) * config.context,
        "metadata": about,
        "begin": begin,
        "group": group,
    }
    recipes = recipes_of(config, begin)
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
        n_embedded=loaded.n_embedded,
    )
    return StreamedRows(rows, max(1, config.tokens // config.context))


def _start(config: Config) -> Start | None:
    return None if config.start is None else Start.of(load_sae(config.start, hookpoint=config.hookpoint[0]))
