"""KL and the SAE's own error at once: 1/2 (MSE + KL * sg[MSE / KL]), where sg stops the gradient.

Source: Karvonen, arXiv 2503.17272. The error is taken relative to the variance of the activations it is an error of
(the batch's FVU). The loss is homogeneous in MSE, so the balance of its two terms is the paper's; but a limit on the
gradient's norm then means the same whatever the scale of a model's activations.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelora.core.numerics import ErrorSums
from saelora.models.hookpoints import Hookpoint


class BatchErrors:
    """The observer of a splice: each SAE's squared error over one batch's replaced positions, with its gradient.

    The SAE's input is the target, and gets no gradient as such, only what comes through the reconstruction.

    Args:
        weight: 0 for a batch that is another process's, else 1.
    """

    def __init__(self, weight: float):
        self.weight = weight
        self.errors: dict[Hookpoint, Tensor] = {}  # sums over this process's rows
        # [4 + d]: error, positions, squares of x, error relative to them by position, x; over processes
        self.sums: dict[Hookpoint, Tensor] = {}

    def __call__(
        self,
        hookpoint: Hookpoint,
        x: Float[Tensor, "*batch d"],
        latents: Float[Tensor, "*batch d_sae"],
        recon: Float[Tensor, "*batch d"],
        mask: Bool[Tensor, "*batch"],
    ) -> None:
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # a mean square minus a squared mean
        keep = mask.unsqueeze(-1)
        kept = torch.where(keep, x.detach(), 0)
        narrow = torch.promote_types(x.dtype, torch.float32)
        squares = torch.where(keep, recon.to(narrow) - kept.to(narrow), 0).square()
        error = squares.sum() * self.weight
        kept_ND = kept.to(wide).flatten(0, -2)
        squares_ND = kept_ND.square()
        relative_N = squares.detach().flatten(0, -2).sum(-1).to(wide) / squares_ND.sum(-1).clamp(min=1e-30)
        counts = torch.stack([mask.sum().to(wide), squares_ND.sum(), relative_N.sum()])
        self.errors[hookpoint] = error
        self.sums[hookpoint] = torch.cat(
            [error.detach().to(wide)[None], self.weight * torch.cat([counts, kept_ND.sum(0)])]
        )

    def relative(self) -> Float[Tensor, ""]:
        """Squared error over squared norm, a mean over the whole batch's replaced positions, then over SAEs.

        It stands beside FVU, which one huge token may make alone. A mean, unlike a median, adds up over processes.
        """
        return torch.stack(
            [(self.sums[h][3] / self.sums[h][1]).to(error.dtype) for h, error in self.errors.items()]
        ).mean()

    def fvu(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Fraction of variance unexplained, the mean over SAEs: this process's share with gradient, and all of it."""
        mine, whole = [], []
        for hookpoint, error in self.errors.items():
            found, n, squares = self.sums[hookpoint][:3]
            sums = ErrorSums(n, self.sums[hookpoint][4:], squares, found)
            mine.append(error / sums.variation.to(error.dtype))
            whole.append(sums.fvu.to(error.dtype))
        return torch.stack(mine).mean(), torch.stack(whole).mean()


def balanced(
    kl: Float[Tensor, ""], mse: Float[Tensor, ""], kl_whole: Float[Tensor, ""], mse_whole: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """1/2 (mse + kl * sg[mse / kl]) of this process's shares, the ratio being that of all processes' sums."""
    ratio = mse_whole / kl_whole.clamp_min(torch.finfo(kl.dtype).eps)  # a perfect copy has no KL to weigh
    return 0.5 * (mse.to(kl.dtype) + kl * ratio.detach())
