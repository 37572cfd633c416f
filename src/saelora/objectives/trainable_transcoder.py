"""A transcoder with some weights to train inside a model, and the ordinary one that computes the same afterwards."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.core.transcoding import transcoder_in
from saelora.errors import InputError
from saelora.models.hookpoints import ReadSite
from saelora.objectives.trainable_sae import Part, TrainableSAE
from saelora.saes.sparse import SparseSAE
from saelora.saes.transcoder import Transcoder

_SAVED_AS_SAELENS = ("relu", "jumprelu")
_WRITES = ("W_dec", "b_dec", "W_skip")


class TrainableTranscoder(TrainableSAE):
    """A frozen transcoder of which one part trains, as a splice calls it.

    - "sae": all weights, of a copy, but JumpReLU's thresholds, as with SAEs.
    - "decoder": all that writes: the decoder, its bias and the skip connection. The latents are the frozen encoder's.

    Args:
        transcoder: as ``saelora.load_sae`` gives it, or one wrapped by ``saelora.saes.sparse``; it is never changed.

    Raises:
        InputError: another part, a transcoder of another kind, or an activation that SAELens's format does not have.
    """

    sae: Transcoder

    def __init__(self, transcoder: Any, part: Part):
        nn.Module.__init__(self)
        self.part = part
        given = transcoder.sae if isinstance(transcoder, SparseSAE) else transcoder
        if not isinstance(given, Transcoder):
            raise InputError(
                f"a {type(given).__name__} cannot be trained, expected a transcoder as saelora.load_sae gives it"
            )
        if part == "linear":
            raise InputError("method linear maps what an SAE rebuilds, and this is a transcoder: use lora, or lora+sae")
        crosses = given.cfg.n_ahead is not None
        if crosses or given.cfg.activation not in _SAVED_AS_SAELENS:
            raise InputError(
                f"a {'cross-layer' if crosses else given.cfg.activation} transcoder, once trained, could not be saved: "
                "SAELens's format, in which trained ones are written, has relu and jumprelu of one layer alone; use "
                "method lora"
            )
        weights = given.state_dict()
        trained = [name for name in weights if (name in _WRITES if part == "decoder" else name != "threshold")]
        copies = {name: weight.clone() if name in trained else weight for name, weight in weights.items()}
        self.sae = Transcoder(given.cfg, copies, given.reads)
        for name in trained:
            getattr(self.sae, name).requires_grad_(True)

    @property
    def reads(self) -> ReadSite | None:
        """What it reads in its layer."""
        return self.sae.reads

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_out"]:
        return self.sae.decode(feature_acts)

    def skip(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """What the skip connection adds; None where there is none."""
        return self.sae.skip(x)

    @torch.no_grad()
    def export(self) -> Transcoder:
        """A frozen transcoder, sharing nothing with this one, that computes the same."""
        weights = {name: weight.clone() for name, weight in self.sae.state_dict().items()}
        return Transcoder(copy.deepcopy(self.sae.cfg), weights, self.sae.reads).eval()


def trainable(sae: Any, part: Part, *, rank: int, seed: int) -> TrainableSAE:
    """An SAE or a transcoder with a part to train; arguments and errors of ``TrainableSAE``."""
    if transcoder_in(sae) is not None:
        return TrainableTranscoder(sae, part)
    return TrainableSAE(sae, part, rank=rank, seed=seed)
