"""An SAE with some weights to train inside a model, and the ordinary SAE that computes the same afterwards.

Shapes: D d_in, S d_sae, R rank.
"""

import copy
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.errors import InputError
from saelora.saes.inference import architecture_of
from saelora.saes.saelens import AT_RUN_TIME
from saelora.saes.sparse import SparseSAE, sparse

Part = Literal["sae", "decoder", "linear"]


class TrainableSAE(nn.Module):
    """A frozen SAE of which one part trains; ``encode`` and ``decode`` as a splice calls them.

    - "sae": all weights, of a copy. SAELens's inference classes give JumpReLU thresholds no gradient, so those stay.
    - "decoder": the decoder's rows and an output bias; the latents are the frozen encoder's.
    - "linear": low-rank affine map of the reconstruction, recon + (recon @ down) @ up + bias; it starts as zero.

    Only that part requires gradients. Where the SAE's input carries a gradient (adapters below it), that passes through
    the encoder, frozen or not.

    Args:
        sae: SAELens inference SAE, or one wrapped by ``saelora.saes.sparse``; it is never changed.
        rank: of the affine map; the other parts have none.
        seed: of the map's first factor.

    Raises:
        InputError: the part cannot be folded back into an SAE of this kind, or the rank cannot be used.
    """

    def __init__(self, sae: Any, part: Part, *, rank: int = 64, seed: int = 0):
        super().__init__()
        self.part = part
        gathers = isinstance(sae, SparseSAE)
        frozen = sae.sae if gathers else sae
        _check_kind(frozen, part)
        if part == "sae":
            self.sae = _copy(frozen)
            for name, parameter in self.sae.named_parameters():
                parameter.requires_grad_(parameter.is_floating_point() and name != "threshold")
            return
        if getattr(frozen.cfg, "rescale_acts_by_decoder_norm", False):
            frozen = _with_unit_rows(frozen)
        self.sae = sparse(frozen) if gathers and part == "linear" else frozen
        if part == "decoder":
            self.W_dec = nn.Parameter(frozen.W_dec.detach().clone())
            self.bias = nn.Parameter(frozen.b_dec.detach().clone())
        else:
            self.down, self.up, self.bias = _affine(frozen.W_dec, rank, seed)

    @property
    def cfg(self) -> Any:
        """The SAE's own configuration."""
        return self.sae.cfg

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        latents: Tensor = self.sae.encode(x)
        return latents

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        if self.part == "decoder":
            return feature_acts @ self.W_dec + self.bias
        recon = self.sae.decode(feature_acts)
        return self._mapped(recon) if self.part == "linear" else recon

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """decode(encode(x)); below an affine map active latents are gathered where the given SAE did so."""
        if isinstance(self.sae, SparseSAE):
            return self._mapped(self.sae.reconstruct(x))
        return self.decode(self.encode(x))

    def _mapped(self, recon: Tensor) -> Tensor:
        return recon + (recon @ self.down) @ self.up + self.bias

    def tuned_parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def export(self) -> Any:
        """A frozen SAELens SAE of the same class, sharing nothing with this one, that computes the same.

        The affine map goes into the decoder: W_dec (I + down up), b_dec (I + down up) + bias. SAELens takes b_dec off
        the input too (apply_b_dec_to_input): what that changes, b_enc takes back.
        """
        made = _copy(self.sae.sae if isinstance(self.sae, SparseSAE) else self.sae)
        if self.part == "sae":
            return made
        old_D, weight_DS = _wide(made.b_dec), _wide(made.W_enc)
        if self.part == "decoder":
            rows_SD, new_D = _wide(self.W_dec), _wide(self.bias)
        else:
            down_DR, up_RD = _wide(self.down), _wide(self.up)
            old_SD = _wide(made.W_dec)
            rows_SD = old_SD + (old_SD @ down_DR) @ up_RD
            new_D = old_D + (old_D @ down_DR) @ up_RD + _wide(self.bias)
        made.W_dec.copy_(rows_SD)
        made.b_dec.copy_(new_D)
        if made.cfg.apply_b_dec_to_input:
            made.b_enc.copy_(_wide(made.b_enc) + (new_D - old_D) @ weight_DS)
        return made


def _check_kind(sae: Any, part: Part) -> None:
    """Raise InputError where what trains could not be written back as an SAE of the same class."""
    if sae.hook_z_reshaping_mode:
        raise InputError(
            "this SAE splits its input into heads, a splice's is merged: load it with saelora.load_sae, or call "
            "turn_off_forward_pass_hook_z_reshaping() first"
        )
    if part == "sae":
        return
    remedy = "train the whole SAE instead (saelora finetune-sae, or adapt --method lora+sae --part sae)"
    if architecture_of(sae) not in ("topk", "jumprelu", "standard"):
        raise InputError(
            f"a {part} trained on a {sae.cfg.architecture()} SAE cannot be folded into it, expected topk, jumprelu or "
            f"standard: {remedy}"
        )
    if sae.cfg.normalize_activations in AT_RUN_TIME:
        raise InputError(
            f"this SAE normalises its input at run time ({sae.cfg.normalize_activations}), so that a {part} cannot be "
            f"folded into it: {remedy}"
        )


def _copy(sae: Any) -> Any:
    """An independent frozen SAE of the same class and weights.

    Built anew, because SAELens's own functions for normalisation, which deepcopy would take over, hold on to the SAE
    they were made for; and on the meta device, because SAELens draws initial weights from torch's global generator.
    """
    cfg = copy.deepcopy(sae.cfg)
    device, cfg.device = cfg.device, "meta"
    made = type(sae)(cfg)
    cfg.device = device
    made.load_state_dict({name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}, assign=True)
    if sae.hook_z_reshaping_mode is not None and hasattr(made, "turn_off_forward_pass_hook_z_reshaping"):
        made.turn_off_forward_pass_hook_z_reshaping()
    return made.to(sae.W_dec.device).eval().requires_grad_(False)


def _with_unit_rows(sae: Any) -> Any:
    """A copy with decoder rows of norm 1 and the norms in the encoder: the same latents, whatever the decoder becomes.

    With rescale_acts_by_decoder_norm SAELens multiplies pre-activations by the norms of the very rows that are to be
    trained.
    """
    made = _copy(sae)
    made.fold_W_dec_norm()
    made.cfg.rescale_acts_by_decoder_norm = False
    return made


def _affine(W_dec: Tensor, rank: int, seed: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Down [D, R], drawn as PEFT draws LoRA's A; up [R, D] and bias [D], zero."""
    width = W_dec.shape[1]
    if rank < 1:
        raise InputError(f"rank {rank} is too small: expected 1 or more")
    drawn = torch.rand(width, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    down = ((2 * drawn - 1) / width**0.5).to(W_dec)
    return nn.Parameter(down), nn.Parameter(W_dec.new_zeros(rank, width)), nn.Parameter(W_dec.new_zeros(width))


def _wide(tensor: Tensor) -> Tensor:
    """A copy in float64 and on the CPU, since Apple's GPUs lack it."""
    return tensor.detach().cpu().to(torch.float64, copy=True)
