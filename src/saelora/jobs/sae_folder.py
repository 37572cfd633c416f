"""What train-sae leaves: SAEs in SAELens's native format, each with results and a card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora.config import to_dict
from saelora.console import Console
from saelora.evals.loss_result import LossFigures, SAEResult
from saelora.files import write_whole
from saelora.identity import About, SAEId, measured_on
from saelora.jobs.sae_card import sae_card
from saelora.manifest import RESULTS, Environment, describe_model, environment, read_json, write_json
from saelora.models.hookpoints import parse_hookpoint
from saelora.records import JsonObject, Record
from saelora.sae_training.recipe import variant_name

if TYPE_CHECKING:
    from torch import Tensor

    from saelora.jobs import train_sae
    from saelora.jobs.transcoder_folder import Trained
    from saelora.models.hookpoints import Hookpoint
    from saelora.models.loading import LoadedModel
    from saelora.sae_training.base import SAETraining
from saelora.reporting.text import error_text, fvu_text

FINISHED = "training.json"  # written last


class TrainingFile(Record):
    """What the file of a finished training holds.

    Args:
        saes: their names.
        together: of transcoders in several layers, by variant: the losses with all of them in the model at once.
    """

    config: JsonObject = {}
    saes: list[str] = []
    environment: Environment | None = None
    together: dict[str, LossFigures] = {}


def finish(
    config: train_sae.Config,
    loaded: LoadedModel,
    objective: SAETraining,
    heldout: Tensor,
    folder: Path,
    seconds: float,
    console: Console,
) -> dict[str, SAEResult]:
    """Save every SAE, measure it spliced in, write results and cards."""
    from saelora.saes.build import fingerprint

    results: dict[str, SAEResult] = {}
    group = objective.group
    trained = _transcoders(config, loaded, objective, heldout, folder, console) if objective.reads else None
    for hookpoint, name in ((hookpoint, name) for hookpoint, names in objective.names.items() for name in names):
        target = target_of(config, folder, name)
        if trained is not None:
            measured, figures = trained.saes[name], trained.figures[name]
        else:
            measured = _saved(config, objective, name, target)
            figures = _measured(loaded, objective, name, {hookpoint: measured}, heldout, console)
        own = SAEId(hookpoint=str(hookpoint), fingerprint=fingerprint(measured))
        about = About(model=describe_model(loaded), saes=[own], token_policy=objective.token_mask.record())
        spent = {"n_tokens_trained": objective.n_tokens, "seconds_training": seconds}
        results[name] = result = SAEResult.model_validate({**figures, "about": measured_on(about, heldout), **spent})
        if group.is_main:
            write_json(target / RESULTS, result)
            card = sae_card(config, name, objective.recipes[name], measured, result)
            write_whole(target / "README.md", card.encode())
        spliced = "" if result.ce_sae is None else f"ce {result.ce_base:.3f} -> {result.ce_sae:.3f} spliced  "
        console.say(
            f"{name}: {fvu_text(result)}  l0 {result.l0:.1f}  dead {result.dead_frac:.1%}  "
            f"{spliced}{error_text(result)}  saved in {target}"
        )
    for line in trained.told() if trained is not None else ():
        console.say(line)
    if group.is_main:
        together = {"together": trained.together} if trained is not None and trained.together else {}
        made = TrainingFile(config=to_dict(config), saes=[*results], environment=environment(), **together)
        write_json(folder / FINISHED, made)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results


def _saved(config: train_sae.Config, objective: SAETraining, name: str, target: Path) -> Any:
    """An SAE as it was saved, on the device and in float32 for measuring."""
    import torch

    from saelora.saes.saving import save_sae

    sae = objective.inference_sae(name).to(getattr(torch, config.save_dtype))
    sae.cfg.dtype = config.save_dtype
    if objective.group.is_main:
        save_sae(sae, target)
    return sae.to(objective.device).float().eval().requires_grad_(False)


def _measured(
    loaded: LoadedModel,
    objective: SAETraining,
    name: str,
    saes: dict[Hookpoint, Any],
    heldout: Tensor,
    console: Console,
) -> JsonObject:
    """The figures of one SAE spliced in."""
    from saelora.evals.loss import evaluate_loss

    (hookpoint,) = saes
    with console.progress(f"evaluating {name}", heldout.numel()) as bar:
        found = evaluate_loss(
            loaded.model, saes, objective.token_mask, heldout, progress=bar.advance, group=objective.group
        )
    return {**found.pop("saes")[str(hookpoint)], **found}


def _transcoders(
    config: train_sae.Config,
    loaded: LoadedModel,
    objective: SAETraining,
    heldout: Tensor,
    folder: Path,
    console: Console,
) -> Trained:
    """All transcoders of a run, saved and measured."""
    from saelora.jobs.transcoder_folder import Trained

    trained = Trained(config, loaded, objective)
    if objective.group.is_main:
        trained.save({name: target_of(config, folder, name) for name in objective.recipes})
    trained.measure(heldout, console)
    return trained


def names_of(config: train_sae.Config, folder: Path) -> list[str]:
    """The names of a finished run's SAEs, as their objective named them."""
    file = folder / FINISHED
    if names := TrainingFile.read(read_json(file), file, "train anew with --overwrite").saes:
        return names
    hookpoints = [str(parse_hookpoint(text)) for text in config.hookpoint]
    return [f"{h}/{variant_name(text)}" for h in hookpoints for text in config.variant] or hookpoints


def target_of(config: train_sae.Config, folder: Path, name: str) -> Path:
    """The folder of one of a run's SAEs."""
    return folder if len(config.hookpoint) == 1 and not config.variant else folder / name
