"""TopK training step that pays for active latents only.

SAELens' dense step multiplies [tokens, d_sae] matrices five times, though all but k entries of a row
are zero in four of them; the same gradients from sparse products take about a third of the time on a
CPU. Its own sparse option fails in the backward pass on CPU tensors (no `view` for sparse tensors).
Importing this module imports SAELens, which takes seconds: import it where an SAE is built.

Suffixes: B tokens of a batch, D d_in, O d_out, S d_sae, K active latents per token, A active latents of all tokens.
"""

import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor

# the parts used here are compared with dense products in the tests
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)


class SparseTopKTrainingSAE(TopKTrainingSAE):  # type: ignore[misc]  # SAELens shows mypy no types
    """SAELens' TopKTrainingSAE with an equal but cheaper training step.

    Differs in two fields of the step's output: `feature_acts` is a sparse COO tensor without gradient,
    and `hidden_pre` carries no gradient. Needs apply_b_dec_to_input and no run-time normalisation.
    """

    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]  # sparse products know fp32 only
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass; `loss.backward()` gives the gradients of SAELens' dense step."""
        x_BD = step_input.sae_in.to(self.dtype)
        norm_S = self.W_dec.detach().norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
        recon_BD, acts_BK, latents_BK, pre_BS = _TopKReconstruct.apply(  # type: ignore[no-untyped-call]
            x_BD, self.W_enc, self.b_enc, self.W_dec, self.b_dec, norm_S, self.cfg.k
        )
        mse = self.mse_loss_fn(recon_BD, x_BD).sum(dim=-1).mean()
        aux = dead_latents_loss(
            self,
            x_BD - self.b_dec,
            (x_BD - recon_BD).detach(),
            norm_S,
            step_input.dead_neuron_mask,
            self.cfg.aux_loss_coefficient,
        )
        rows_BK = torch.arange(len(x_BD), device=x_BD.device)[:, None].expand_as(latents_BK)
        if norm_S is not None:
            acts_BK = acts_BK * norm_S[latents_BK]
        feature_acts = torch.sparse_coo_tensor(
            torch.stack([rows_BK.flatten(), latents_BK.flatten()]),
            acts_BK.flatten(),
            pre_BS.shape,
            check_invariants=False,
        )
        losses = {"mse_loss": mse, "auxiliary_reconstruction_loss": aux}
        return TrainStepOutput(x_BD, recon_BD, feature_acts, pre_BS, mse + aux, losses)


def dead_latents_loss(
    sae: Any,
    centred_BD: Float[Tensor, "B D"],
    error_BO: Float[Tensor, "B O"],
    norm_S: Float[Tensor, " S"] | None,
    dead_S: Bool[Tensor, " S"] | None,
    coefficient: float,
) -> Float[Tensor, ""]:
    """SAELens' `calculate_topk_aux_loss`, computed over the columns of dead latents only.

    Args:
        sae: has W_enc [D, S], b_enc and W_dec [S, O].
        centred_BD: what the encoder is given.
        error_BO: what the living latents left, without gradient.
        norm_S: of the decoder's rows, where latents are ranked by it.
    """
    dead = dead_S.nonzero().squeeze(1) if dead_S is not None else error_BO.new_empty(0)
    if coefficient == 0 or len(dead) == 0:
        return error_BO.new_zeros(())
    k_aux = error_BO.shape[1] // 2
    scale = min(len(dead) / k_aux, 1.0)
    acts = torch.addmm(sae.b_enc[dead], centred_BD, sae.W_enc[:, dead])
    if len(dead) > k_aux:
        ranked = acts.detach() if norm_S is None else acts.detach() * norm_S[dead]
        kept = ranked.topk(k_aux, sorted=False).indices
        acts = acts * torch.zeros_like(ranked).scatter_(1, kept, 1.0)
    recon_error = acts @ sae.W_dec[dead] - error_BO
    loss: Tensor = coefficient * scale * recon_error.pow(2).sum(dim=-1).mean()
    return loss


class Active(NamedTuple):
    """The active latents of a batch's tokens, one token after the other."""

    acts_A: Float[Tensor, " A"]
    latents_A: Int[Tensor, " A"]
    rows_A: Int[Tensor, " A"]  # whose token
    starts_B: Int[Tensor, " B_and_one"]  # where each token's begin, and last where all end


def sparse_gradients(
    grad_BO: Float[Tensor, "B O"], x_BD: Float[Tensor, "B D"], W_dec: Float[Tensor, "S O"], active: Active
) -> tuple[Float[Tensor, "D S"], Float[Tensor, " S"], Float[Tensor, "S O"]]:
    """Gradients of W_enc, b_enc and W_dec, where acts = x W_enc + b_enc and the output adds acts W_dec."""
    (n_rows, _), d_sae = x_BD.shape, len(W_dec)
    acts_A, latents_A, rows_A, starts_B = active
    pattern = torch.sparse_csr_tensor(
        starts_B, latents_A, torch.zeros_like(acts_A), (n_rows, d_sae), check_invariants=False
    )
    d_acts = torch.sparse.sampled_addmm(pattern, grad_BO, W_dec.T).values() * (acts_A > 0)
    order = latents_A.argsort(stable=True)
    counts_S = torch.bincount(latents_A, minlength=d_sae)
    starts_S = torch.cat([counts_S.new_zeros(1), counts_S.cumsum(0)])

    def by_latent(values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(starts_S, rows_A[order], values[order], (d_sae, n_rows), check_invariants=False)

    d_W_dec = by_latent(acts_A) @ grad_BO
    d_W_enc = (by_latent(d_acts) @ x_BD).T
    d_b_enc = torch.zeros(d_sae, dtype=grad_BO.dtype, device=grad_BO.device).index_add_(0, latents_A, d_acts)
    return d_W_enc, d_b_enc, d_W_dec


class _TopKReconstruct(torch.autograd.Function):
    """x -> reconstruction, active latents' values before any rescaling, their indices, and all ranked pre_acts.

    With `norm_S` (the decoder rows' norms) latents are ranked by pre_act times norm, and the decoder
    divides by the norm again: it changes the choice of latents and nothing else, so it needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BD: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        norm_S: Tensor | None,
        k: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        centred_BD = x_BD - b_dec
        pre_BS = torch.addmm(b_enc, centred_BD, W_enc)
        if norm_S is not None:
            pre_BS.mul_(norm_S)
        acts_BK, latents_BK = pre_BS.topk(k, dim=-1, sorted=False)
        acts_BK.relu_()
        if norm_S is not None:
            acts_BK.div_(norm_S[latents_BK])
        recon_BD = torch.nn.functional.embedding_bag(latents_BK, W_dec, per_sample_weights=acts_BK, mode="sum") + b_dec
        ctx.save_for_backward(centred_BD, W_enc, W_dec, acts_BK, latents_BK)
        ctx.mark_non_differentiable(acts_BK, latents_BK, pre_BS)
        return recon_BD, acts_BK, latents_BK, pre_BS

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD = grads[0].contiguous()
        centred_BD, W_enc, W_dec, acts_BK, latents_BK = ctx.saved_tensors
        (n_rows, k), device = latents_BK.shape, latents_BK.device
        starts_B = torch.arange(0, n_rows * k + 1, k, device=device)
        rows_A = torch.arange(n_rows * k, device=device) // k
        active = Active(acts_BK.flatten(), latents_BK.flatten(), rows_A, starts_B)
        d_W_enc, d_b_enc, d_W_dec = sparse_gradients(grad_BD, centred_BD, W_dec, active)
        d_b_dec = grad_BD.sum(dim=0) - W_enc @ d_b_enc  # the bias is added at the end and subtracted at the start
        return None, d_W_enc, d_b_enc, d_W_dec, d_b_dec, None, None
