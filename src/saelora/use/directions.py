"""Latents by their decoder's rows: what these add to the logits directly, and which point the same way."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.core import lora
from saelora.core.head import head_of
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.models.norms import without_gain
from saelora.saes.saelens import unwrapped
from saelora.use.run import LoadedRun

_IN_STREAM = ("resid_pre", "resid_post", "mlp_out", "attn_out")  # where a decoder's rows are added to the stream
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
Weights = Callable[[range], Float[Tensor, "n_latents vocab"]]


def decoder_of(sae: Any) -> Float[Tensor, "d_sae d"] | None:
    """An SAE's decoder, a row a latent; None where it holds none.

    A cross-layer transcoder's rows are the sum of what a latent writes into its own layer and all later ones.
    """
    inner = unwrapped(sae)
    found, ahead = getattr(inner, "W_dec", None), getattr(inner, "W_ahead", None)
    if not isinstance(found, Tensor) or found.dim() != 2:
        return None
    return found.detach() if ahead is None else found.detach() + ahead.detach().sum(1)


@torch.no_grad()
def logit_weights(loaded: LoadedRun, hookpoint: Hookpoint, *, adapted: bool | None = None) -> Weights | None:
    """Latents -> what an activation of 1 adds to the logits directly: unembedding (gain of the final norm * row).

    The final norm's scale, which depends on the rest of the stream, is taken as 1, biases and layers between are left
    out. None where a decoder's rows are not added to the residual stream, or the norm is none that is known.

    Args:
        adapted: with what the run trained, or as all was before; None: the run's SAEs, the original's unembedding.
    """
    saes = loaded.saes_before if adapted is False else loaded.saes_of_default
    decoder, anatomy = decoder_of(saes[hookpoint]), anatomy_of(loaded.model)
    norm = next((getattr(anatomy.stack, name) for name in _NORMS if hasattr(anatomy.stack, name)), None)
    if decoder is None or norm is None or hookpoint.site not in _IN_STREAM:
        return None
    try:
        rule = without_gain(norm, anatomy.d_model, "the final norm")
    except InputError:
        return None
    head = head_of(loaded.model, lora.adapter_name(loaded.model) if adapted else None)
    x = torch.randn(64, anatomy.d_model, generator=torch.Generator().manual_seed(0)).to(head.weight)
    bias = getattr(norm, "bias", None)
    gain = (norm(x) - (0 if bias is None else bias)).float().div(rule(x).float()).median(0).values

    def of(latents: range) -> Tensor:
        rows = decoder[latents.start : latents.stop].float().to(gain.device) * gain
        weights: Tensor = rows @ head.weight.float().T * head.scale
        return weights.cpu()

    return of


@torch.no_grad()
def nearest(decoder: Float[Tensor, "d_sae d"], latent: int, n: int) -> list[tuple[int, float]]:
    """The n other latents whose decoder's rows have the largest cosine with this one's."""
    rows = decoder.float()
    cosines = torch.nn.functional.cosine_similarity(rows, rows[latent][None], dim=-1)
    cosines[latent] = -torch.inf
    best = cosines.topk(min(n, len(rows) - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
