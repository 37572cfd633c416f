"""A finished SAE that training goes on from: which ones can be, and how its weights enter an SAE in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saelora.errors import InputError
from saelora.saes.loading import LoadedSAE
from saelora.saes.processing import is_centred

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

    from saelora.sae_training.recipe import SAERecipe

ARCHITECTURES = ("topk", "standard", "jumprelu")  # those whose weights in use and in training are the same
_NORM_TOLERANCE = 0.01  # of decoder rows that should have norm 1: what half precision leaves of it


@dataclass(frozen=True, eq=False)
class Start:
    """A finished SAE, SAELens' inference class, for raw activations."""

    ref: str
    sae: Any
    architecture: str
    d_in: int
    d_sae: int
    k: int | None  # of a topk SAE

    @classmethod
    def of(cls, loaded: LoadedSAE) -> Start:
        """Take a loaded SAE as the start.

        Raises:
            InputError: it is of another architecture, normalises its inputs at run time, or ranks its latents without
                regard to the lengths of decoder rows whose lengths differ.
        """
        sae: Any = loaded.sae
        if loaded.architecture not in ARCHITECTURES:
            raise InputError(
                f"start {loaded.ref} is a {loaded.architecture} SAE, expected {', '.join(ARCHITECTURES)}: "
                "start from another SAE, or train without --start"
            )
        if is_centred(sae, loaded.hookpoint):
            raise InputError(
                f"start {loaded.ref} was trained on activations without their mean (center_writing_weights), training "
                "here is on the model as it is: start from an SAE of raw activations, or train without --start"
            )
        if sae.cfg.normalize_activations != "none":
            raise InputError(
                f"start {loaded.ref} normalises activations at run time ({sae.cfg.normalize_activations}), expected "
                "none: start from an SAE of raw activations, or train without --start"
            )
        if loaded.architecture == "topk" and not sae.cfg.rescale_acts_by_decoder_norm:
            low, high = sae.W_dec.norm(dim=-1).aminmax()
            if low < 1 - _NORM_TOLERANCE or high > 1 + _NORM_TOLERANCE:
                raise InputError(
                    f"start {loaded.ref} has decoder rows of norms {low:.3g} to {high:.3g} and ranks latents without "
                    "them, expected norm 1: training ranks by what a latent adds, so start from another SAE"
                )
        k = int(sae.cfg.k) if loaded.architecture == "topk" else None
        return cls(loaded.ref, sae, loaded.architecture, loaded.d_in, loaded.d_sae, k)

    def check(self, recipe: SAERecipe, d_in: int) -> None:
        """Raise InputError where a recipe, or the width d_in of its activations, is not this SAE's."""
        expected = {"architecture": self.architecture, "d_in": self.d_in, "d_sae": self.d_sae, "k": self.k}
        got = {"architecture": recipe.architecture, "d_in": d_in, "d_sae": recipe.width(d_in), "k": recipe.k}
        for name, value in got.items():
            if expected[name] not in (value, None):
                remedy = "start from an SAE of this width" if name == "d_in" else f"leave {name} out, or start anew"
                raise InputError(f"{name} is {value}, but the start {self.ref} has {expected[name]}: {remedy}")

    @torch.no_grad()
    def copy_into(self, sae: TrainingSAE[Any], scale: float) -> None:
        """Set the weights of an SAE in training, which sees activations times ``scale``, to reconstruct the same.

        Latents and reconstruction are the finished SAE's times ``scale``: biases and thresholds grow by it, the two
        matrices stay.
        """
        weights = {name: tensor.double() for name, tensor in self.sae.state_dict().items()}
        if not self.sae.cfg.apply_b_dec_to_input:  # an SAE in training subtracts b_dec first
            weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
        for name in ("b_enc", "b_dec", "threshold"):
            if name in weights:
                weights[name] = weights[name] * scale
        sae.load_state_dict(weights)
