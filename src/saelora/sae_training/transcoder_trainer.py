"""Optimiser steps of one transcoder: an SAE's, but for what it reads and what it rebuilds."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.records import JsonObject
from saelora.sae_training.trainer import SAETrainer

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput


class TranscoderTrainer(SAETrainer):
    """One transcoder, its optimiser and its counts of silence.

    Suffixes: N tokens of a chunk, B of a batch, D d_in, O d_out.
    """

    def _built(self, d_in: int, metadata: JsonObject, device: torch.device) -> Any:
        from saelora.sae_training.transcoder import TrainingTranscoder

        self.metadata = metadata
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            return TrainingTranscoder(self.recipe, d_in, d_in).to(device)

    @property
    def out_scale(self) -> float:
        return float(self.sae.scale_out)

    def start(self, x_ND: Float[Tensor, "N D"], y_NO: Float[Tensor, "N O"] | None = None) -> None:
        """Centre and scale both sides on the first chunk, and point the latents; later chunks change nothing."""
        if self.scale:
            return
        assert y_NO is not None
        self.sae.start(x_ND, y_NO, torch.Generator().manual_seed(self.recipe.seed))
        self.scale = float(self.sae.scale_in)

    def forward_raw(self, x_BD: Float[Tensor, "B D"], y_BO: Float[Tensor, "B O"], progress: float) -> TrainStepOutput:
        output: TrainStepOutput = self.sae.training_forward_pass(
            self.sae.inputs(x_BD), self.sae.targets(y_BO), self.dead_S
        )
        return output

    def inference_parts(self, n_tokens: int) -> tuple[JsonObject, dict[str, Tensor]]:
        """Configuration and weights of SAELens's JumpReLU transcoder that it has become, on the CPU."""
        from sae_lens.registry import get_sae_class
        from sae_lens.saes.sae import SAEMetadata

        skip = "skip_" if self.sae.W_skip is not None else ""
        cfg = get_sae_class(f"jumprelu_{skip}transcoder")[1](
            d_in=self.sae.cfg.d_in, d_sae=self.sae.cfg.d_sae, d_out=self.sae.cfg.d_out, apply_b_dec_to_input=False
        )
        made = {
            "version": importlib.metadata.version("saelora"),
            "recipe": json.loads(json.dumps(asdict(self.recipe))),
            "n_tokens": n_tokens,
            "n_dead": int(self.dead_S.sum()),
        }
        cfg.metadata = SAEMetadata(**{**self.metadata, "saelora": made})
        return cfg.to_dict(), self.sae.folded()
