"""Optimiser steps of one SAE on activations already at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelora.core.spread import Spread
from saelora.records import JsonObject
from saelora.sae_training.build import build_training_sae, init_from_data
from saelora.sae_training.recipe import SAERecipe
from saelora.sae_training.warm_start import Start
from saelora.train.checkpoint import StateDict

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput


class SAETrainer:
    """One SAE, its optimiser and its counts of silence.

    An optimiser step is ``forward``, the caller's backward pass, ``update`` and ``count``, once ``start`` has seen
    the first chunk.

    Suffixes: N tokens of a chunk, B of a batch, D d_in, O width of what is rebuilt, S d_sae.
    """

    def __init__(
        self,
        recipe: SAERecipe,
        d_in: int,
        metadata: JsonObject,
        device: torch.device,
        begin: Start | None = None,
    ) -> None:
        """``begin``: a finished SAE to go on from.

        Raises:
            InputError: recipe, d_in and ``begin`` do not fit one another.
        """
        self.recipe, self.begin = recipe, begin
        if begin is not None:
            begin.check(recipe, d_in)
        self.sae = self._built(d_in, metadata, device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=recipe.lr, betas=recipe.adam_betas, fused=True)
        self.tokens_silent_S = torch.zeros(self.sae.cfg.d_sae, dtype=torch.long, device=device)
        self.scale = 0.0  # raw activations times this have mean norm sqrt(d_in); 0 until the first chunk is seen
        self.n_steps = 0

    def _built(self, d_in: int, metadata: JsonObject, device: torch.device) -> Any:
        return build_training_sae(self.recipe, d_in, metadata, device)

    def train_chunk(
        self,
        x_ND: Float[Tensor, "N D"],
        orders: list[Int[Tensor, " N"]],
        progress: float,
        span: float,
        y_NO: Float[Tensor, "N O"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Go through a chunk of raw activations once for each order of its tokens.

        Args:
            x_ND: activations as the model has them, any float type.
            orders: one permutation [N] of the tokens for each pass.
            progress: share of the run done before this chunk.
            span: share of the run that this chunk is.
            y_NO: what is to be rebuilt from x_ND; default: x_ND itself.

        Returns:
            0-d tensors. `loss` as optimised, `mse` per token and dimension in raw units, `fvu`, `relative_error`
            with its quantiles and `l0`: each measured over the first pass, before the step that learns from the
            tokens in question, so on data the SAE has not seen. `top_variance` (with `relative_error`, see
            `saelora.core.spread`): of the chunk. `dead_frac`: after it. All are of what is to be rebuilt.
        """
        x_ND = x_ND.float()
        y_NO = x_ND if y_NO is None else y_NO.float()
        self.start(x_ND, y_NO)
        batches = [part for order in orders for part in order.chunk(-(-len(order) // self.recipe.batch_tokens))]
        n_first = len(batches) // len(orders)
        totals, error_N = torch.zeros(3, device=x_ND.device), torch.zeros(len(x_ND), device=x_ND.device)
        for index, part in enumerate(batches):
            now = progress + span * (index + 0.5) / len(batches)
            output = self.forward_raw(x_ND[part], y_NO[part], now)
            output.loss.backward()
            self.update(now)
            l0 = self.count(output)
            if index < n_first:
                totals += torch.stack([output.loss.detach(), output.losses["mse_loss"].detach(), l0]) * len(part)
                error_N[part] = token_errors(output)
        loss, sse, l0 = (totals / len(x_ND)).unbind()
        mean_O = y_NO.mean(dim=0)
        variation = (y_NO - mean_O).pow(2).sum()
        sse = sse / self.out_scale**2
        spread = Spread(len(y_NO))
        spread.add(y_NO, error_N / self.out_scale**2)
        return {
            "loss": loss,
            "mse": sse / y_NO.shape[1],
            "fvu": sse / (variation / len(y_NO)),
            **spread.errors(),
            "top_variance": spread.top_variance(mean_O, variation),
            "l0": l0,
            "dead_frac": self.dead_S.float().mean(),
        }

    @property
    def dead_S(self) -> Bool[Tensor, " S"]:
        """Silent for more than the recipe's dead_after_tokens."""
        return self.tokens_silent_S > self.recipe.dead_after_tokens

    @property
    def out_scale(self) -> float:
        """Times what is rebuilt as the model has it, what a pass is to give."""
        return self.scale

    def start(self, x_ND: Float[Tensor, "N D"], y_NO: Float[Tensor, "N O"] | None = None) -> None:
        """Scale and centre on the first chunk, as SAELens' expected_average_only_in does with its first batches.

        Later chunks change nothing. An SAE that goes on from a finished one gets its weights here, at that scale.
        """
        if self.scale:
            return
        self.scale = float(x_ND.shape[1] ** 0.5 / x_ND.norm(dim=-1).mean())
        if self.begin is not None:
            self.begin.copy_into(self.sae, self.scale)
            return
        generator = torch.Generator().manual_seed(self.recipe.seed)
        init_from_data(self.sae, x_ND * self.scale, self.recipe, generator)

    def forward_raw(self, x_BD: Float[Tensor, "B D"], y_BO: Float[Tensor, "B O"], progress: float) -> TrainStepOutput:
        """A training pass on activations as the model has them."""
        return self.forward(x_BD * self.scale, progress)

    def forward(self, x_BD: Float[Tensor, "B D"], progress: float) -> TrainStepOutput:
        """SAELens' training pass on scaled activations, with the coefficients of this moment of the run."""
        from sae_lens.saes.sae import TrainStepInput

        warm = self.recipe.sparsity_at(progress)
        coefficients = {n: warm * float(getattr(c, "value", c)) for n, c in self.sae.get_coefficients().items()}
        return self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=x_BD,
                coefficients=coefficients,
                dead_neuron_mask=self.dead_S,
                n_training_steps=self.n_steps,
                is_logging_step=False,
            )
        )

    def update(self, progress: float) -> None:
        """Clip the gradients and take one optimiser step with them."""
        if self.recipe.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.recipe.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(progress)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.n_steps += 1
        if self.n_steps == 1 and hasattr(self.sae, "topk_threshold"):
            # SAELens averages the threshold of the saved SAE from 0 up: far too low after a short run
            self.sae.topk_threshold /= self.sae.cfg.topk_threshold_lr

    @torch.no_grad()
    def count(self, output: TrainStepOutput) -> Float[Tensor, ""]:
        """Mean active latents per token of this batch; updates how long each latent has been silent."""
        acts = output.feature_acts
        if acts.is_sparse:  # uncoalesced is fine: a latent appears once per token
            latents = acts._indices()[1][acts._values() > 0]
            active_S = torch.bincount(latents, minlength=acts.shape[1])
        else:
            active_S = acts.count_nonzero(dim=0)
        self.tokens_silent_S += len(acts)
        self.tokens_silent_S[active_S > 0] = 0
        return active_S.sum() / len(acts)

    def state_dict(self) -> StateDict:
        """All that the next chunk depends on."""
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "tokens_silent": self.tokens_silent_S,
            "scale": self.scale,
            "n_steps": self.n_steps,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Take over what `state_dict` gave; the recipe must be the same."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tokens_silent_S.copy_(state["tokens_silent"])
        self.scale = state["scale"]
        self.n_steps = state["n_steps"]


def token_errors(output: TrainStepOutput) -> Float[Tensor, " N"]:
    """Squared error of what a training pass reconstructed, in scaled units, without gradient."""
    errors: Tensor = (output.sae_out.detach() - output.sae_in.detach()).float()
    return errors.pow(2).sum(dim=-1)
