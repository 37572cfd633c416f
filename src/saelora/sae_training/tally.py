"""What a chunk of end-to-end training comes to for one SAE, summed piece by piece."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.core.spread import Spread
from saelora.sae_training.trainer import SAETrainer, token_errors

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput


@dataclass
class Tally:
    """A chunk's figures of one SAE, summed on the device piece by piece, in scaled units."""

    spread: Spread  # for as many tokens as the SAE sees of the chunk
    n_tokens: int = 0
    n_kept: int = 0
    sums: Float[Tensor, "4"] | float = (
        0.0  # loss and KL over all tokens, squared error and active latents over kept ones
    )
    mean_D: Float[Tensor, " D"] | float = 0.0
    variation: Float[Tensor, ""] | float = field(default=0.0)  # squared deviations from that mean

    def add(
        self,
        loss: Float[Tensor, ""],
        kl: Float[Tensor, ""],
        output: "TrainStepOutput",
        l0: Float[Tensor, ""],
        n_tokens: int,
    ) -> None:
        x_ND = output.sae_in.detach()
        n, mean_D = len(x_ND), x_ND.mean(dim=0)
        # variances of two parts and the distance of their means make the whole's: sums of squares would cancel
        apart_D = mean_D - self.mean_D
        spread = (x_ND - mean_D).pow(2).sum() + apart_D.pow(2).sum() * (self.n_kept * n / (self.n_kept + n))
        self.variation = self.variation + spread
        self.n_tokens, self.n_kept = self.n_tokens + n_tokens, self.n_kept + n
        self.mean_D = self.mean_D + apart_D * (n / self.n_kept)
        self.spread.add(x_ND.float(), token_errors(output))
        sse = output.losses["mse_loss"].detach()
        self.sums = self.sums + torch.stack([loss * n_tokens, kl * n_tokens, sse * n, l0 * n])

    def metrics(self, trainer: SAETrainer) -> dict[str, Float[Tensor, ""]]:
        assert isinstance(self.sums, Tensor)
        assert isinstance(self.mean_D, Tensor)
        assert isinstance(self.variation, Tensor)
        loss, kl, sse, l0 = self.sums.unbind()
        return {
            "loss": loss / self.n_tokens,
            "kl": kl / self.n_tokens,
            "mse": sse / self.n_kept / trainer.scale**2 / len(self.mean_D),
            "fvu": sse / self.variation,
            **self.spread.errors(),
            "top_variance": self.spread.top_variance(self.mean_D, self.variation),
            "l0": l0 / self.n_kept,
            "dead_frac": trainer.dead_S.float().mean(),
        }
