"""Train sparse autoencoders to reconstruct a model's activations: one pass of the model's prefix feeds them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saelora.core.replay import activations
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.sae_export import inference_sae, save_sae
from saelora.objectives.sae_recipe import SAERecipe
from saelora.objectives.sae_trainer import SAETrainer

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE

ROWS_PER_FORWARD = 4  # of the model's prefix; on CPUs larger batches fall out of the cache and are slower


class SAEObjective:
    """SAEs at one or several hookpoints of a frozen model, trained side by side with one recipe.

    Each SAE ends up exactly as if it had been trained alone. A step shuffles its own chunk of tokens and
    nothing carries over between chunks but what `state_dict` holds, so a run resumed between two steps
    goes on bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        hookpoints: Sequence[Hookpoint],
        recipe: SAERecipe,
        *,
        token_mask: Callable[[Tensor, Tensor | None], Tensor],
        device: torch.device | str,
        n_tokens_total: int,
        metadata: dict[str, Any],
        rows_per_forward: int = ROWS_PER_FORWARD,
    ) -> None:
        """Build the SAEs with seeded weights; the first chunk centres, scales and points them.

        Args:
            model: on `device`; left as it is.
            hookpoints: where the SAEs sit; no two alike.
            token_mask: (input_ids, attention_mask) -> Bool[batch, seq], True = the SAE sees the token.
            n_tokens_total: tokens of the whole run, exempt ones included: the length of the schedules.
            metadata: what the saved SAEs say about their origin in SAELens' terms: model_name, dataset_path,
                context_size, prepend_bos and so on. hook_name is added here.
            rows_per_forward: rows that go through the model at a time; no effect beyond speed and memory.

        Raises:
            InputError: no hookpoint or a repeated one, one that the model lacks, or a recipe that does not fit.
        """
        if not hookpoints or len(set(hookpoints)) != len(hookpoints):
            raise InputError(
                f"SAE training got hookpoints {[str(h) for h in hookpoints]}: expected one or more, no two alike"
            )
        if n_tokens_total < 1:
            raise InputError(f"SAE training got {n_tokens_total} tokens for the whole run: expected 1 or more")
        self.model, self.recipe, self.token_mask = model, recipe, token_mask
        self.device = torch.device(device)
        self.n_tokens_total, self.rows_per_forward = n_tokens_total, rows_per_forward
        self.n_steps = self.n_tokens = 0
        anatomy = anatomy_of(model)
        self.trainers: dict[Hookpoint, SAETrainer] = {}
        for hookpoint in hookpoints:
            about = {"hook_head_index": None, **metadata, "hook_name": hookpoint.tl_name}
            self.trainers[hookpoint] = SAETrainer(recipe, anatomy.width(hookpoint), about, self.device)

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Several optimiser steps of each SAE on the activations of packed rows [n_rows, context], long.

        Args:
            progress: share of the run's tokens done before this step, 0 <= progress < 1.

        Returns:
            0-d float tensors: `loss` (mean over the SAEs), and `mse`, `fvu`, `l0`, `dead_frac` as
            `SAETrainer.train_chunk` defines them, with "/layers.N.site" appended if there are several SAEs.

        Raises:
            InputError: the token mask exempts every token of the rows.
        """
        acts = self._activations(rows.to(self.device))
        n_tokens = len(next(iter(acts.values())))
        if n_tokens == 0:
            raise InputError(f"rows of {rows.numel()} tokens left none to train the SAE on: the token mask exempts all")
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.n_steps)
        orders = [torch.randperm(n_tokens, generator=generator).to(self.device) for _ in range(self.recipe.passes)]
        span = rows.numel() / self.n_tokens_total
        metrics: dict[str, Tensor] = {}
        losses = []
        for hookpoint, trainer in self.trainers.items():
            found = trainer.train_chunk(acts.pop(hookpoint), orders, progress, span)
            losses.append(found.pop("loss"))
            suffix = f"/{hookpoint}" if len(self.trainers) > 1 else ""
            metrics |= {f"{name}{suffix}": value for name, value in found.items()}
        self.n_steps += 1
        self.n_tokens += n_tokens
        return {"loss": torch.stack(losses).mean(), **metrics}

    @torch.no_grad()
    def _activations(self, rows: Tensor) -> dict[Hookpoint, Tensor]:
        """Activations [n_kept_tokens, d_in] at each hookpoint; exempt tokens left out, layers above never run."""
        was_training = self.model.training
        self.model.eval()
        parts: dict[Hookpoint, list[Tensor]] = {hookpoint: [] for hookpoint in self.trainers}
        try:
            for part in rows.split(self.rows_per_forward):
                keep = self.token_mask(part, None)
                for hookpoint, found in activations(self.model, part, None, list(self.trainers)).items():
                    parts[hookpoint].append(found[keep])
        finally:
            self.model.train(was_training)
        return {hookpoint: torch.cat(found) for hookpoint, found in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimisers, counters and scales: tensors and plain values only."""
        trainers = {str(hookpoint): trainer.state_dict() for hookpoint, trainer in self.trainers.items()}
        return {"trainers": trainers, "n_steps": self.n_steps, "n_tokens": self.n_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: the state is of SAEs at other hookpoints.
        """
        ours = [str(hookpoint) for hookpoint in self.trainers]
        if sorted(ours) != sorted(state["trainers"]):
            raise InputError(f"checkpoint has SAEs at {sorted(state['trainers'])}, this run trains {sorted(ours)}")
        for hookpoint, trainer in self.trainers.items():
            trainer.load_state_dict(state["trainers"][str(hookpoint)])
        self.n_steps, self.n_tokens = state["n_steps"], state["n_tokens"]

    def inference_sae(self, hookpoint: Hookpoint) -> SAE[Any]:
        """The SAE as it is now, as SAELens' inference class, for raw activations; an independent copy."""
        return inference_sae(self.trainers[hookpoint], self.n_tokens)

    def save(self, hookpoint: Hookpoint, folder: Path) -> None:
        """Write cfg.json and sae_weights.safetensors that SAELens' SAE.load_from_disk reads.

        Raises:
            InputError: nothing has been trained yet, or the folder already holds an SAE.
        """
        save_sae(self.inference_sae(hookpoint), folder)
