"""What train-sae leaves of transcoders: each measured on the clean stream, then all in the model at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saelora.console import Console
from saelora.evals.loss import evaluate_loss
from saelora.evals.loss_result import LossFigures, LossResult
from saelora.evals.rebuilt import evaluate_rebuilding
from saelora.records import JsonObject
from saelora.saes.saving import save_for_circuit_tracer, save_sae
from saelora.saes.transcoder import Transcoder, TranscoderParts, build_transcoder

if TYPE_CHECKING:
    from torch import Tensor

    from saelora.jobs import train_sae
    from saelora.models.hookpoints import Hookpoint
    from saelora.models.loading import LoadedModel
    from saelora.sae_training.base import SAETraining

_SHARED = ("ce_base", "n_tokens_evaluated", "row_starts")


class Trained:
    """A run's transcoders as they are saved, and their figures; a set is what one recipe made in all layers.

    Args:
        saes: by name, as splices take them.
        figures: by name: fields of ``SAEResult``, losses among them where the layer is the only one.
        together: by the recipe's name, the losses with the whole set in the model, where that has several layers.
    """

    def __init__(self, config: train_sae.Config, loaded: LoadedModel, objective: SAETraining) -> None:
        self._config, self._loaded, self._objective = config, loaded, objective
        self._saved = {name: self._as_saved(name) for name in objective.recipes}
        self.saes = {name: as_spliced(sae, objective.device) for name, sae in self._saved.items()}
        self.figures: dict[str, JsonObject] = {}
        self.together: dict[str, LossFigures] = {}

    def _as_saved(self, name: str) -> Any:
        sae = self._objective.inference_sae(name).to(getattr(torch, self._config.save_dtype))
        sae.cfg.dtype = self._config.save_dtype
        return sae

    def _sets(self) -> dict[str, dict[Hookpoint, Transcoder]]:
        sets: dict[str, dict[Hookpoint, Transcoder]] = {}
        for hookpoint, names in self._objective.names.items():
            for name in names:
                sets.setdefault(name.partition("/")[2], {})[hookpoint] = self.saes[name]
        return sets

    def save(self, targets: dict[str, Path]) -> None:
        """Write each in SAELens's format, and all of them for circuit-tracer where that is asked for."""
        for name, sae in self._saved.items():
            save_sae(sae, targets[name])
        if self._config.circuit_tracer is not None:
            weights = {h.layer: self._saved[names[0]].state_dict() for h, names in self._objective.names.items()}
            save_for_circuit_tracer(weights, Path(self._config.circuit_tracer), str(self._config.model))

    def measure(self, heldout: Tensor, console: Console) -> None:
        """Measure on held-out rows [n_rows, context]: every one by itself, and each set in the model at once."""
        model, objective, sets = self._loaded.model, self._objective, self._sets()
        own: Any = {"group": objective.group}
        with console.progress("evaluating transcoders", heldout.numel()) as bar:
            alone = evaluate_rebuilding(model, sets, objective.token_mask, heldout, progress=bar.advance, **own)
        for variant, one in sets.items():
            with console.progress(f"evaluating {variant or 'them together'}", heldout.numel()) as bar:
                found = evaluate_loss(model, dict(one), objective.token_mask, heldout, progress=bar.advance, **own)
            losses = LossResult.model_validate({**found, "saes": {}})
            self._keep(variant, {str(h): alone[variant][str(h)].to_json() for h in one}, losses)

    def _keep(self, variant: str, alone: dict[str, JsonObject], losses: LossResult) -> None:
        """Losses are a transcoder's own only where it stands alone in the model; the clean model's are everyone's."""
        whole = {key: value for key, value in losses.to_json().items() if key != "saes"}
        shared = {key: whole[key] for key in _SHARED}
        if len(alone) > 1:
            self.together[variant] = LossFigures.model_validate({k: v for k, v in whole.items() if k != "row_starts"})
        for hookpoint, figures in alone.items():
            name = f"{hookpoint}/{variant}" if variant else hookpoint
            self.figures[name] = {**figures, **(shared if len(alone) > 1 else whole)}

    def told(self) -> list[str]:
        """What a set of several layers costs together, a line each."""
        n = len(self._objective.names)
        return [
            f"all {n} at once{f', {variant}' if variant else ''}: ce {of.ce_base:.3f} -> {of.ce_sae:.3f} spliced  "
            f"kl {of.kl_sae:.3f}  top-1 agreement {of.top1_sae:.1%}"
            for variant, of in self.together.items()
        ]


def as_spliced(sae: Any, device: torch.device) -> Transcoder:
    """One of SAELens's transcoders as splices take it, in float32."""
    cfg = sae.cfg
    parts = TranscoderParts(
        sae.state_dict(), "jumprelu", hook_in=cfg.metadata.hook_name, hook_out=cfg.metadata.hook_name_out
    )
    made = build_transcoder(parts, str(cfg.metadata.hook_name_out), torch.float32)
    return made.to(device).eval().requires_grad_(False)
