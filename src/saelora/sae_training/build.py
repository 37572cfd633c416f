"""SAELens' training SAE of a recipe: built, and its first weights taken from data."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.errors import InputError
from saelora.records import JsonObject
from saelora.sae_training.recipe import SAERecipe

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

_SAELENS_NAMES = {"matryoshka": "matryoshka_batchtopk"}


def build_training_sae(recipe: SAERecipe, d_in: int, metadata: JsonObject, device: torch.device) -> TrainingSAE:
    """SAELens' training SAE of this recipe, seeded, with random weights; the caller's random state is untouched.

    Raises:
        InputError: the recipe does not fit activations of width d_in.
    """
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    sae_class, config_class = get_sae_training_class(_SAELENS_NAMES.get(recipe.architecture, recipe.architecture))
    options: dict[str, Any] = {"decoder_init_norm": recipe.decoder_init_norm}
    if recipe.architecture in ("topk", "batchtopk", "matryoshka"):
        options |= {"k": recipe.k, "aux_loss_coefficient": recipe.aux_coefficient}
    if recipe.architecture == "matryoshka":
        options |= {"matryoshka_widths": _widths(recipe, d_in)}
    if recipe.architecture in ("standard", "gated"):
        options |= {"l1_coefficient": recipe.l1_coefficient}
    if recipe.architecture == "jumprelu":
        options |= {"l0_coefficient": recipe.l0_coefficient}
    config = config_class(d_in=d_in, d_sae=recipe.width(d_in), metadata=SAEMetadata(**metadata), **options)
    if recipe.architecture == "topk" and device.type == "cpu":
        from saelora.sae_training.sparse_topk import SparseTopKTrainingSAE as sae_class
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return sae_class(config).to(device)


def _widths(recipe: SAERecipe, d_in: int) -> list[int]:
    d_sae = recipe.width(d_in)
    widths = list(recipe.matryoshka_widths) or sorted({max(1, d_sae // n) for n in (8, 4, 2, 1)})
    if widths[0] < 1 or widths[-1] != d_sae or any(a >= b for a, b in pairwise(widths)):
        raise InputError(f"matryoshka_widths {widths}: expected increasing widths from 1 up that end at d_sae {d_sae}")
    return widths


@torch.no_grad()
def init_from_data(sae: TrainingSAE, x_ND: Float[Tensor, "N D"], recipe: SAERecipe, generator: torch.Generator) -> None:
    """Centre the SAE on scaled activations [n_tokens, d_in] and, if the recipe says so, take its directions from them.

    The decoder's bias becomes the mean. With init "data" each decoder row becomes a randomly drawn
    activation less the mean, at norm decoder_init_norm, and the encoder its transpose: every latent
    then fires on some token from the start, which matters when the run is short. Last, the encoder is
    multiplied by the one number that makes the first reconstructions best in the squared sense:
    k similar latents at full strength would overshoot k-fold.
    """
    sae.b_dec.copy_(x_ND.mean(dim=0))
    if recipe.init == "data":
        _directions_from_data(sae, x_ND, recipe, generator)
    sample_BD = x_ND[:4096]
    recon_BD, centred_BD = sae.decode(sae.encode(sample_BD)) - sae.b_dec, sample_BD - sae.b_dec
    gain = (recon_BD * centred_BD).sum() / recon_BD.pow(2).sum()
    if gain > 0:
        sae.W_enc.mul_(gain)


def _directions_from_data(sae: TrainingSAE, x_ND: Tensor, recipe: SAERecipe, generator: torch.Generator) -> None:
    drawn = torch.randint(len(x_ND), (sae.cfg.d_sae,), generator=generator) if len(x_ND) < sae.cfg.d_sae else None
    if drawn is None:
        drawn = torch.randperm(len(x_ND), generator=generator)[: sae.cfg.d_sae]
    rows_SD = x_ND[drawn.to(x_ND.device)] - sae.b_dec
    # two equal tokens would give two equal rows, which no gradient parts again: a little noise does
    noise_SD = torch.randn(rows_SD.shape, generator=generator).to(rows_SD)
    rows_SD = rows_SD + 0.1 * noise_SD * rows_SD.norm(dim=-1, keepdim=True) / rows_SD.shape[-1] ** 0.5
    sae.W_dec.copy_(recipe.decoder_init_norm * torch.nn.functional.normalize(rows_SD, dim=-1))
    sae.W_enc.copy_(sae.W_dec.T)
