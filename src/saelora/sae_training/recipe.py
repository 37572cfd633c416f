"""What kind of sparse autoencoder is trained, and how: the numbers a training run is made of.

The defaults are for a TopK SAE trained on about a million tokens, far fewer than the literature's
billions: the dictionary starts from data, each chunk is gone through twice, and a latent counts as dead
early. For longer runs lower lr and passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from saelora.config import check_keys, check_limit, coerce
from saelora.errors import InputError
from saelora.limits import Limit

Architecture = Literal[
    "topk", "batchtopk", "matryoshka", "jumprelu", "standard", "gated", "transcoder", "skip-transcoder"
]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
TRANSCODERS = ("transcoder", "skip-transcoder")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_.=,-]{1,200}")


@dataclass(frozen=True)
class SAERecipe:
    """Shape and training of one SAE.

    All coefficients apply to activations scaled so that their mean norm is sqrt(d_in), and to a
    reconstruction loss that is summed over d_in and averaged over tokens.

    Raises:
        InputError: a value is outside what the field's comment allows.
    """

    architecture: Architecture = "topk"
    expansion: int = 8  # d_sae / d_in; ignored where d_sae is given
    d_sae: int | None = None
    k: int = 32  # active latents per token (topk) or on average (batchtopk, matryoshka, transcoders)
    matryoshka_widths: tuple[int, ...] = ()  # increasing; () means d_sae / 8, / 4, / 2, d_sae
    lr: float = 3e-3  # peak
    warmup: float = 0.02  # share of the run's tokens over which lr rises linearly from 0
    decay: float = 0.3  # share of the run's tokens, at its end, over which lr falls linearly to 0
    batch_tokens: int = 2048  # tokens per optimiser step, at most
    passes: int = 2  # times that each chunk of activations is gone through: far cheaper than as many new tokens
    adam_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0  # largest gradient norm; 0 switches clipping off
    dead_after_tokens: int = 100_000  # a latent silent for longer is dead; every pass counts
    aux_coefficient: float = 1.0  # weight of the dead latents' reconstruction of the error (topk family, transcoders)
    l1_coefficient: float = 5.0  # standard, gated
    l0_coefficient: float = 5.0  # jumprelu
    sparsity_warmup: float = 0.05  # share of the run's tokens over which the l1 or l0 coefficient rises
    init: Literal["data", "random"] = "data"  # decoder rows: centred activations, or random directions
    decoder_init_norm: float = 1.0  # norm of the decoder's rows at the start; the encoder starts as its transpose
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"SAE architecture {self.architecture!r} is not known: use one of {', '.join(ARCHITECTURES)}"
            )
        for name in ("expansion", "k", "lr", "batch_tokens", "passes", "dead_after_tokens", "decoder_init_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"SAE recipe: {name} is {getattr(self, name)}, expected a number above 0")
        for name in ("aux_coefficient", "l1_coefficient", "l0_coefficient", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise InputError(f"SAE recipe: {name} is {getattr(self, name)}, expected 0 or more")
        for name in ("warmup", "decay", "sparsity_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"SAE recipe: {name} is {getattr(self, name)}, expected a share between 0 and 1")
        if self.init not in ("data", "random"):
            raise InputError(f"SAE recipe: init is {self.init!r}, expected 'data' or 'random'")

    @property
    def is_transcoder(self) -> bool:
        """Whether it rebuilds an MLP's output from its input."""
        return self.architecture in TRANSCODERS

    def width(self, d_in: int) -> int:
        """d_sae for activations of width d_in."""
        width = self.d_sae if self.d_sae is not None else self.expansion * d_in
        if width < self.k:
            raise InputError(f"SAE recipe: k is {self.k} but d_sae is {width}: lower k or widen the SAE")
        return width

    def lr_at(self, progress: float) -> float:
        """Learning rate after `progress` (0 to 1) of the run's tokens: up, level, down to 0, all linear."""
        up = progress / self.warmup if self.warmup else 1.0
        down = (1 - progress) / self.decay if self.decay else 1.0
        return self.lr * max(0.0, min(1.0, up, down))

    def sparsity_at(self, progress: float) -> float:
        """Factor on the l1 or l0 coefficient after `progress` (0 to 1) of the run's tokens."""
        return min(1.0, progress / self.sparsity_warmup) if self.sparsity_warmup else 1.0


def variant_name(text: str) -> str:
    """A variant as it was written, less its whitespace: its name everywhere, folders included."""
    return "".join(text.split())


def variant_recipes(
    texts: Sequence[str], common: SAERecipe, kinds: Mapping[str, Any], limits: Mapping[str, Limit] | None = None
) -> dict[str, SAERecipe]:
    """The recipes that variants such as "k=16" or "architecture=batchtopk,k=64" make of a common one.

    Args:
        kinds: type of each field that a variant may set, as `saelora.config.coerce` takes it.
        limits: what its values have to be beyond their types.

    Returns:
        Recipes by variant name; {"": common} for no variants.

    Raises:
        InputError: a text that is no list of key=value, an unknown key, a bad value, or two variants that are the same.
    """
    recipes: dict[str, SAERecipe] = {}
    for text in texts:
        name = variant_name(text)
        try:
            recipe = _override(name, common, kinds, limits or {})
        except InputError as error:
            raise InputError(f"variant {text!r}: {error}") from None
        same = next((other for other in recipes if recipes[other] == recipe), None)
        if same is not None:
            raise InputError(f"variant {text!r} gives the same SAE as variant {same!r}: leave one of them out")
        recipes[name] = recipe
    return recipes or {"": common}


def _override(name: str, common: SAERecipe, kinds: Mapping[str, Any], limits: Mapping[str, Limit]) -> SAERecipe:
    """`common` with the fields that a variant's name sets."""
    if not _FOLDER_NAME.fullmatch(name):
        raise InputError("expected key=value, several parted by commas, in at most 200 of A-Z a-z 0-9 _ . = , -")
    values: dict[str, Any] = {}
    for part in name.split(","):
        written, equals, value = part.partition("=")
        key = written.replace("-", "_")
        if not (written and equals and value):
            raise InputError(f"got {part!r}, expected key=value, e.g. k=16")
        check_keys([key], kinds)
        if key in values:
            raise InputError(f"{key} is given twice: keep one")
        values[key] = coerce(kinds[key], value, key)
        check_limit(limits.get(key), values[key], key)
    if "expansion" in values:
        values.setdefault("d_sae", None)  # the common d_sae would silently win over the variant's expansion
    return replace(common, **values)
