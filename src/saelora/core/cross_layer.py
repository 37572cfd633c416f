"""Cross-layer transcoders in a splice: what the latents of one layer write into the MLPs of the layers above.

Such a transcoder is spliced in as one member a layer. Members hold weights alone: ``decode`` gives what latents write
into their own layer, ``ahead`` what they write into each later one. What is under way between layers belongs to a pass.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelora.core.transcoding import transcoder_in
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint


class CrossLayer(Protocol):
    """What a splice needs of a member beside what a transcoder has; n_ahead: how many later layers it writes into."""

    n_ahead: int

    def ahead(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch n_ahead d_out"]: ...


def crosses(sae: Any) -> bool:
    """Whether this is a layer of a cross-layer transcoder, or one in a wrapper."""
    return transcoder_in(sae) is not None and _writer(sae) is not None


def _writer(sae: Any) -> Any:
    """What has ``ahead``: a wrapper with one of its own, or else what it wraps; None where nothing has."""
    while not hasattr(sae, "ahead") and hasattr(sae, "sae"):
        sae = sae.sae
    return sae if hasattr(sae, "ahead") else None


class Ahead:
    """What the latents of one pass have written into layers that it has not come to yet.

    Layer 0 begins anew, so that nothing is left of another pass, or of one that broke off.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._next = 0  # the layer that is to come
        self._written: Tensor | None = None  # [batch, seq, layers from that one on, d]

    def into(
        self,
        sae: Any,
        hookpoint: Hookpoint,
        latents: Float[Tensor, "*batch d_sae"],
        mask: Bool[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch d"] | None:
        """What the layers below have written into this one, [..., d]; what its latents write is kept for those above.

        Where the mask is False they write nothing. None of what writes into its own layer alone.

        Raises:
            InputError: the layers below have not run in this pass.
        """
        writer = _writer(sae)
        if writer is None:
            return None
        if hookpoint.layer == 0:
            self.clear()
        if hookpoint.layer != self._next:
            raise InputError(
                f"{hookpoint} is written into by the latents of all layers below, and these did not run in the same "
                "pass (gradient checkpointing runs layers by themselves): turn checkpointing off, call the whole model"
            )
        made = writer.ahead(torch.where(mask.unsqueeze(-1), latents, 0))
        before, self._next = self._written, self._next + 1
        self._written = made if before is None else before[..., 1:, :] + made
        return None if before is None else before[..., 0, :]


def check_whole(saes: Mapping[Hookpoint, Any], n_layers: int) -> None:
    """Raise InputError where of a cross-layer transcoder a layer is missing, or it is one of another depth."""
    members = {hookpoint: transcoder_in(sae) for hookpoint, sae in saes.items() if crosses(sae)}
    for hookpoint, member in members.items():
        n, expected = member.n_ahead + 1, n_layers - hookpoint.layer
        if n != expected:
            raise InputError(
                f"the cross-layer transcoder's latents of layer {hookpoint.layer} write into {n} layers, expected "
                f"{expected}, as this model has {n_layers} layers: is it for another model?"
            )
    missing = sorted(set(range(n_layers)) - {hookpoint.layer for hookpoint in members})
    if members and missing:
        raise InputError(
            f"a cross-layer transcoder is put in whole, and layer {missing[0]} of it is not here: name its folder with "
            "--transcoders, and no layers"
        )
