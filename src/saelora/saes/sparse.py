"""Reconstructions of frozen TopK and JumpReLU SAEs that pay for active latents only.

SAELens decodes by a dense [N, S] @ [S, D] product, in which all but a few dozen latents of a token are zero, and its
backward pass is two more of them. Here the active latents' decoder rows are gathered and summed, and the gradient of
the input gathers the same latents' encoder columns. The encoder's product stays dense: every latent competes.

Shapes: N tokens, C tokens of a chunk, D d_in, S d_sae, K active latents of a token, A active latents of all tokens.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saelora.saes.inference import architecture_of
from saelora.saes.saelens import AT_RUN_TIME
from saelora.saes.transcoder import Transcoder

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}  # of one [C, S] tensor of pre-activations
_MIN_CHUNK = 256  # tokens; the encoder is read once a chunk
_CROSSOVER = {"cpu": 16}  # device -> least d_sae per active latent at which gathering is faster; see worthwhile()


def sparse(sae: Any) -> Any:
    """``sae`` with a ``reconstruct`` that gathers, where that gives the same reconstructions; else ``sae`` itself.

    It applies to TopKSAE and JumpReLUSAE whose inputs are neither normalised at run time nor reshaped, and to
    transcoders of both kinds.
    """
    if isinstance(sae, SparseSAE) or _kind(sae) is None:
        return sae
    return SparseSAE(sae)


def worthwhile(sae: Any, device_type: str) -> bool:
    """Whether gathering is faster than the dense products on this kind of device, by benchmarks/sparse_decode.py.

    A JumpReLU SAE's active latents are not known before it runs, so it counts as having 100 (Gemma Scope's do).
    Devices that the benchmark has not seen get the dense products.
    """
    kind = _kind(sae)
    if kind is None or device_type not in _CROSSOVER:
        return False
    active = sae.cfg.k if kind == "topk" else 100
    return bool(sae.cfg.d_sae >= _CROSSOVER[device_type] * active)


class SparseSAE(nn.Module):
    """An SAE as it was, and ``reconstruct``. All else (cfg, W_dec, save_model, ...) is the wrapped SAE's own."""

    def __init__(self, sae: Any):
        super().__init__()
        self.sae = sae
        self._rows: tuple[Any, Tensor] | None = None  # W_enc transposed, and the weight's version that it is of

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "sae" not in self.__dict__.get("_modules", ()):
                raise
            return getattr(self.sae, name)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        latents: Tensor = self.sae.encode(x)
        return latents

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        recon: Tensor = self.sae.decode(feature_acts)
        return recon

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        recon: Tensor = self.sae(x)
        return recon

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """[..., d_in] -> decode(encode(x)), up to the order of summation; gradients reach x alone.

        An SAE that is being trained, or watched by hooks of its own, goes through encode and decode. A transcoder's is
        [..., d_out], without its skip connection.
        """
        sae = self.sae
        if _kind(sae) is None or any(p.requires_grad for p in sae.parameters()) or _hooked(sae):
            return self.decode(self.encode(x))
        x_ND = x.to(sae.dtype).reshape(-1, x.shape[-1])
        if sae.cfg.apply_b_dec_to_input:
            x_ND = x_ND - sae.b_dec
        rows_SD = self._encoder_rows() if torch.is_grad_enabled() and x_ND.requires_grad else None
        active = _Active(*_Encode.apply(x_ND, sae, rows_SD))  # type: ignore[no-untyped-call]
        recon_ND = F.embedding_bag(
            active.index_A, sae.W_dec, active.offset_N, per_sample_weights=active.weight_A, mode="sum"
        )
        recon: Tensor = (recon_ND + sae.b_dec).view(*x.shape[:-1], sae.W_dec.shape[1])
        return recon

    def _encoder_rows(self) -> Tensor:
        """W_enc transposed [S, D], copied when a gradient first needs it and again only after the weight changed."""
        weight = self.sae.W_enc
        version = (weight.data_ptr(), weight._version)
        if self._rows is None or self._rows[0] != version:
            self._rows = (version, weight.detach().T.contiguous())
        return self._rows[1]


class _Active(NamedTuple):
    """The active latents of all tokens, one token after the other."""

    weight_A: Tensor  # what multiplies the decoder's row
    index_A: Tensor  # which latent
    offset_N: Tensor  # where each token's latents begin


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, sae: Any, rows_SD: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        chunk = max(_MIN_CHUNK, CHUNK_BYTES.get(x_ND.device.type, CHUNK_BYTES["cuda"]) // (sae.cfg.d_sae * 4))
        select = _topk if _kind(sae) == "topk" else _jumprelu
        parts = [select(sae, x_CD @ sae.W_enc + sae.b_enc) for x_CD in x_ND.split(chunk)]
        weight_A, slope_A, index_A, count_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        offset_N = count_N.cumsum(0) - count_N
        ctx.mark_non_differentiable(index_A, offset_N)
        ctx.save_for_backward(slope_A, index_A, offset_N, rows_SD)
        return weight_A.to(sae.W_dec.dtype), index_A, offset_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        slope_A, index_A, offset_N, rows_SD = ctx.saved_tensors
        pull_A = (grads[0] * slope_A).to(rows_SD.dtype)
        return F.embedding_bag(index_A, rows_SD, offset_N, per_sample_weights=pull_A, mode="sum"), None, None


def _topk(sae: Any, pre_CS: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k largest pre-activations, cut off at zero unless signed: weights, their slopes, latents, counts.

    With rescale_acts_by_decoder_norm, latents compete by pre_act * norm of their decoder row, and decoding divides by
    that norm again: the row's weight is the pre-activation itself.
    """
    scaled_CS = pre_CS * sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else pre_CS
    index_CK = scaled_CS.topk(sae.cfg.k, dim=-1, sorted=False).indices
    weight_A = pre_CS.gather(-1, index_CK).flatten()
    count_C = torch.full((len(pre_CS),), sae.cfg.k, device=pre_CS.device)
    if getattr(sae.cfg, "activation", None) == "signed_topk":
        return weight_A, torch.ones_like(weight_A), index_CK.flatten(), count_C
    weight_A = weight_A.relu()
    return weight_A, (weight_A > 0).to(weight_A.dtype), index_CK.flatten(), count_C


def _jumprelu(sae: Any, pre_CS: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pre-activations above both their threshold and zero: weights, their slopes, latents, counts."""
    # written as "not below", so that NaN counts as active and is not hidden
    active_CS = ~(pre_CS <= sae.threshold.clamp(min=0))
    token_A, index_A = active_CS.nonzero(as_tuple=True)
    weight_A = pre_CS[token_A, index_A]
    return weight_A, torch.ones_like(weight_A), index_A, active_CS.sum(-1)


def _kind(sae: Any) -> str | None:
    """ "topk" or "jumprelu" where ``reconstruct`` knows the SAE's arithmetic, else None."""
    if type(sae) is Transcoder:
        return {"topk": "topk", "signed_topk": "topk", "jumprelu": "jumprelu"}.get(sae.cfg.activation)
    kind = architecture_of(sae)
    if kind not in ("topk", "jumprelu"):
        return None
    # SAELens folds both expected_average_only_in and covariance_whitening into the weights
    at_run_time = sae.cfg.normalize_activations in AT_RUN_TIME
    if at_run_time or sae.hook_z_reshaping_mode:
        return None
    return kind


def _hooked(sae: Any) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in sae.children())
