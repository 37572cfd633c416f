"""Train SAEs to reconstruct a model's activations, and transcoders an MLP's output from its input.

One pass of the model's prefix feeds them all.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelora.core.check import check_activations
from saelora.errors import InputError
from saelora.sae_training.base import SAETraining, summary
from saelora.sae_training.recipe import SAERecipe


class SAEObjective(SAETraining):
    """SAEs that reconstruct their hookpoints' activations, or transcoders that make them of what an MLP reads.

    Layers above the highest hookpoint never run. A step shuffles its own chunk of tokens. Several processes share the
    passes of the model.
    """

    def step(self, rows: Int[Tensor, "n_rows context"], progress: float) -> dict[str, Float[Tensor, ""]]:
        """Several optimiser steps of each SAE on the activations of packed rows [n_rows, context], long.

        Args:
            progress: share of the run's tokens done before this step, 0 <= progress < 1.

        Returns:
            0-d float tensors: `loss` (mean over the SAEs), and what `SAETrainer.train_chunk` gives. If there are
            several SAEs, "/name" is appended, and `fvu`, `relative_error` and `top_variance` by themselves are their
            means.

        Raises:
            InputError: the token mask exempts every token of the rows.
        """
        acts = self._activations(rows.to(self.device))
        n_tokens = max(map(len, acts.values()))
        if min(map(len, acts.values())) == 0:
            raise InputError(f"rows of {rows.numel()} tokens left none to train the SAE on: the token mask exempts all")
        span = rows.numel() / self.n_tokens_total
        found: dict[str, dict[str, Tensor]] = {}
        for hookpoint, names in self.names.items():
            y_NO = acts.pop(hookpoint)
            x_ND = acts.pop(self.reads[hookpoint]) if hookpoint in self.reads else y_NO
            for name in self._own(names):
                trainer = self.trainers[name]
                orders = self._orders(trainer.recipe, len(x_ND))
                found[name] = trainer.train_chunk(x_ND, orders, progress, span, y_NO)
        self.n_steps += 1
        self.n_tokens += n_tokens
        return summary(self._of_all(found))

    def check(self, rows: Int[Tensor, "n_rows context"]) -> None:
        """Raise InputError where the activations that steps see are not those of the whole model."""
        check_activations(self.model, self.points, rows)

    def _orders(self, recipe: SAERecipe, n_tokens: int) -> list[Tensor]:
        """A permutation [n_tokens] for each pass; depends on the recipe and the step alone, not on other SAEs."""
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.n_steps)
        return [torch.randperm(n_tokens, generator=generator).to(self.device) for _ in range(recipe.passes)]
