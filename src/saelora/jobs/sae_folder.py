"""What train-sae leaves: SAEs in SAELens's native format, each with results and a card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from saelora.config import to_dict
from saelora.console import Console
from saelora.evals.loss_result import SAEResult
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
    from saelora.models.loading import LoadedModel
    from saelora.sae_training.base import SAETraining
from saelora.reporting.text import error_text, fvu_text

FINISHED = "training.json"  # written last


class TrainingFile(Record):
    """What the file of a finished training holds; ``saes``: their names."""

    config: JsonObject = {}
    saes: list[str] = []
    environment: Environment | None = None


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
    import torch

    from saelora.evals.loss import evaluate_loss
    from saelora.saes.build import fingerprint
    from saelora.saes.saving import save_sae

    results: dict[str, SAEResult] = {}
    group = objective.group
    for hookpoint, name in ((hookpoint, name) for hookpoint, names in objective.names.items() for name in names):
        target = target_of(config, folder, name)
        sae = objective.inference_sae(name).to(getattr(torch, config.save_dtype))
        sae.cfg.dtype = config.save_dtype
        if group.is_main:
            save_sae(sae, target)
        measured = sae.to(objective.device).float().eval().requires_grad_(False)
        with console.progress(f"evaluating {name}", heldout.numel()) as bar:
            found = evaluate_loss(
                loaded.model, {hookpoint: measured}, objective.token_mask, heldout, progress=bar.advance, group=group
            )
        own = SAEId(hookpoint=str(hookpoint), fingerprint=fingerprint(measured))
        about = About(model=describe_model(loaded), saes=[own], token_policy=objective.token_mask.record())
        spent = {"n_tokens_trained": objective.n_tokens, "seconds_training": seconds}
        figures = {**found.pop("saes")[str(hookpoint)], **found}
        results[name] = result = SAEResult.model_validate({**figures, "about": measured_on(about, heldout), **spent})
        if group.is_main:
            write_json(target / RESULTS, result)
            card = sae_card(config, name, objective.recipes[name], sae, result)
            write_whole(target / "README.md", card.encode())
        console.say(
            f"{name}: {fvu_text(result)}  l0 {result.l0:.1f}  dead {result.dead_frac:.1%}  "
            f"ce {result.ce_base:.3f} -> {result.ce_sae:.3f} spliced  {error_text(result)}  "
            f"saved in {target}"
        )
    if group.is_main:
        made = TrainingFile(config=to_dict(config), saes=[*results], environment=environment())
        write_json(folder / FINISHED, made)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results


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
