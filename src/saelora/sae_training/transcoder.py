"""A transcoder in training: BatchTopK over a batch, with sparse products, and a threshold for when it is used alone.

Per batch of B tokens the k * B largest activations stay (times the norms of their decoder rows: what a latent adds), so
that k is the mean of active latents. No library's transcoder can compute that of one token, so that the transcoder in
use keeps what is above the threshold that training has come to: a JumpReLU, which all of them know (Bussmann et al.,
BatchTopK Sparse Autoencoders, arXiv 2412.06410).
Importing this module imports SAELens, which takes seconds: import it where a transcoder is built.

Suffixes: B tokens of a batch, D d_in, O d_out, S d_sae, A active latents of all tokens.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor, nn

from saelora.sae_training.recipe import SAERecipe
from saelora.sae_training.sparse_topk import Active, dead_latents_loss, sparse_gradients

_RATE = 0.05  # of the threshold's running mean, once there are as many steps


class TrainingTranscoder(nn.Module):
    """Weights on centred and scaled activations, and what centres and scales them.

    x -> (x - mean_in) * scale_in is what the encoder and the skip connection are given; the output is scaled alike.
    """

    mean_in: Tensor
    mean_out: Tensor
    scale_in: Tensor
    scale_out: Tensor
    threshold: Tensor
    n_thresholds: Tensor

    def __init__(self, recipe: SAERecipe, d_in: int, d_out: int):
        super().__init__()
        d_sae, self.recipe = recipe.width(d_in), recipe
        self.cfg = SimpleNamespace(d_in=d_in, d_sae=d_sae, d_out=d_out, k=recipe.k)
        random_SO = F.normalize(torch.randn(d_sae, d_out), dim=-1) * recipe.decoder_init_norm
        self.W_dec = nn.Parameter(random_SO)
        self.W_enc = nn.Parameter(F.normalize(torch.randn(d_sae, d_in), dim=-1).T.contiguous())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_out, d_in)) if recipe.architecture == "skip-transcoder" else None
        for name, value in (("mean_in", torch.zeros(d_in)), ("mean_out", torch.zeros(d_out))):
            self.register_buffer(name, value)
        for name in ("scale_in", "scale_out"):
            self.register_buffer(name, torch.ones((), dtype=torch.float64))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("n_thresholds", torch.zeros((), dtype=torch.long))

    def inputs(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Raw activations as the encoder is given them."""
        return (x_BD - self.mean_in) * self.scale_in.float()

    def targets(self, y_BO: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
        """Raw outputs of the MLP as the decoder is to give them."""
        return (y_BO - self.mean_out) * self.scale_out.float()

    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]  # sparse products know fp32 only
    def training_forward_pass(
        self, x_BD: Float[Tensor, "B D"], y_BO: Float[Tensor, "B O"], dead_S: Bool[Tensor, " S"] | None = None
    ) -> TrainStepOutput:
        """One forward pass on scaled activations; its ``sae_in`` is y, which ``sae_out`` is to be."""
        norm_S = self.W_dec.detach().norm(dim=-1)
        made_BO, *active, least = _Reconstruct.apply(  # type: ignore[no-untyped-call]
            x_BD, self.W_enc, self.b_enc, self.W_dec, norm_S, self.cfg.k * len(x_BD), self._guess()
        )
        active = Active(*active)
        recon_BO = made_BO + self.b_dec
        if self.W_skip is not None:
            recon_BO = recon_BO + x_BD @ self.W_skip.T
        self._see(least)
        mse = (recon_BO - y_BO).pow(2).sum(dim=-1).mean()
        error_BO = (y_BO - recon_BO).detach()
        aux = dead_latents_loss(self, x_BD, error_BO, norm_S, dead_S, self.recipe.aux_coefficient)
        feature_acts = torch.sparse_coo_tensor(
            torch.stack([active.rows_A, active.latents_A]),
            active.acts_A * norm_S[active.latents_A],
            (len(x_BD), self.cfg.d_sae),
            check_invariants=False,
        )
        losses = {"mse_loss": mse, "auxiliary_reconstruction_loss": aux}
        return TrainStepOutput(y_BO, recon_BO, feature_acts, feature_acts, mse + aux, losses)

    def _guess(self) -> float:
        """Most likely below the next batch's least activation."""
        return 0.5 * float(self.threshold)

    @torch.no_grad()
    def _see(self, least: Tensor) -> None:
        """Take a batch's least activation into the threshold: the mean of the first steps, then one that forgets."""
        if not self.training:
            return
        self.n_thresholds += 1
        rate = (1 / self.n_thresholds.float()).clamp(min=_RATE)
        self.threshold += rate * (least - self.threshold)

    @torch.no_grad()
    def start(self, x_ND: Float[Tensor, "N D"], y_NO: Float[Tensor, "N O"], generator: torch.Generator) -> None:
        """Take centres and scales from raw activations, and first directions from pairs of them.

        Both sides get mean 0 and a mean norm of the square root of their width. With the recipe's init "data" a latent
        reads the direction of one token's input and writes that of the same token's output.
        """
        for side, found in (("in", x_ND), ("out", y_NO)):
            mean = found.mean(dim=0)
            scale = found.shape[1] ** 0.5 / (found - mean).norm(dim=-1).double().mean().clamp(min=1e-30)
            getattr(self, f"mean_{side}").copy_(mean)
            getattr(self, f"scale_{side}").copy_(scale)
        x_ND, y_NO = self.inputs(x_ND), self.targets(y_NO)
        if self.recipe.init == "data":
            n = len(x_ND)
            drawn = torch.randperm(max(n, self.cfg.d_sae), generator=generator)[: self.cfg.d_sae].to(x_ND.device) % n
            self.W_enc.copy_(_noisy(x_ND[drawn], generator).T)
            self.W_dec.copy_(self.recipe.decoder_init_norm * _noisy(y_NO[drawn], generator))
        sample = slice(0, 4096)
        made_NO = self.training_forward_pass(x_ND[sample], y_NO[sample]).sae_out - self.b_dec
        gain = (made_NO * y_NO[sample]).sum() / made_NO.pow(2).sum()
        self.W_enc.mul_(gain.clamp(min=1e-3))
        self.threshold.zero_()
        self.n_thresholds.zero_()

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """W_enc, b_enc, W_dec, b_dec, threshold and W_skip, if there is one, for raw activations, on the CPU.

        The decoder's rows have norm 1, so that a latent's value is the length of what it adds, in the units of the
        MLP's output.
        """
        of = {name: tensor.detach().double().cpu() for name, tensor in self.state_dict().items()}
        scale_in, scale_out = of["scale_in"], of["scale_out"]
        norm_S = of["W_dec"].norm(dim=-1).clamp(min=1e-30)
        gain_S = norm_S / scale_out
        W_enc = of["W_enc"] * scale_in * gain_S
        found = {
            "W_enc": W_enc,
            "b_enc": of["b_enc"] * gain_S - of["mean_in"] @ W_enc,
            "W_dec": of["W_dec"] / norm_S[:, None],
            "b_dec": of["b_dec"] / scale_out + of["mean_out"],
            "threshold": (of["threshold"] / scale_out).expand(len(norm_S)).clone(),
        }
        if "W_skip" in of:
            found["W_skip"] = of["W_skip"] * scale_in / scale_out
            found["b_dec"] = found["b_dec"] - found["W_skip"] @ of["mean_in"]
        return {name: tensor.float().contiguous() for name, tensor in found.items()}


def _noisy(rows_SD: Tensor, generator: torch.Generator) -> Tensor:
    """Directions, a little apart from one another: two equal tokens' would never be parted by a gradient."""
    noise_SD = torch.randn(rows_SD.shape, generator=generator).to(rows_SD)
    norm_S1 = rows_SD.norm(dim=-1, keepdim=True)
    return F.normalize(rows_SD + 0.1 * noise_SD * norm_S1 / rows_SD.shape[-1] ** 0.5, dim=-1)


class _Reconstruct(torch.autograd.Function):
    """x -> what the n strongest activations of a batch write, those activations (``Active``), and the least of them."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BD: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        norm_S: Tensor,
        n: int,
        guess: float,
    ) -> tuple[Tensor, ...]:
        pre_BS = torch.addmm(b_enc, x_BD, W_enc)
        ranked_BS = pre_BS * norm_S
        least = least_of(ranked_BS, n, guess)
        mask_BS = ranked_BS >= least if least > 0 else ranked_BS > 0
        rows_A, latents_A = mask_BS.nonzero(as_tuple=True)
        acts_A = pre_BS[rows_A, latents_A]
        starts_B = F.pad(mask_BS.sum(1).cumsum(0), (1, 0))
        made_BO = F.embedding_bag(latents_A, W_dec, starts_B[:-1], per_sample_weights=acts_A, mode="sum")
        active = Active(acts_A, latents_A, rows_A, starts_B)
        ctx.save_for_backward(x_BD, W_dec, *active)
        ctx.mark_non_differentiable(*active, least)
        return made_BO, *active, least

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, W_dec, *active = ctx.saved_tensors
        d_W_enc, d_b_enc, d_W_dec = sparse_gradients(grads[0].contiguous(), x_BD, W_dec, Active(*active))
        return None, d_W_enc, d_b_enc, d_W_dec, None, None, None


def least_of(ranked_BS: Float[Tensor, "B S"], n: int, guess: float = 0.0) -> Float[Tensor, ""]:
    """The n-th largest number, 0 where fewer are above 0; ``guess``, if it is below that, saves time."""
    for floor in (guess, 0.0) if guess > 0 else (0.0,):
        above = ranked_BS[ranked_BS > floor]
        if len(above) >= n:
            return above.kthvalue(len(above) - n + 1).values
    return ranked_BS.new_zeros(())
