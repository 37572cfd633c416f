"""SAEs small enough to reason about, and a tokenizer that only knows its special tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from families import BOS, EOS, PAD
from saelora.core.splice import TokenMask
from saelora.models.anatomy import Anatomy
from saelora.models.hookpoints import Hookpoint


class TinySAE(nn.Module):
    """A frozen ReLU SAE with random weights, so its reconstruction is far from its input."""

    def __init__(self, d_in: int, d_sae: int = 24, seed: int = 0, dtype: torch.dtype = torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.d_in = d_in
        for name, shape in {
            "W_enc": (d_in, d_sae),
            "b_enc": (d_sae,),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        }.items():
            weight = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(weight.to(dtype), requires_grad=False))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.W_dec + self.b_dec


class Identity:
    """Reconstructs perfectly."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts


class Broken:
    """Fails in the middle of a forward pass."""

    def encode(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken SAE")

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts


@dataclass
class SpecialTokens:
    bos_token_id: int | None = BOS
    eos_token_id: int | None = EOS
    pad_token_id: int | None = PAD


SPARE_SPECIAL = TokenMask((PAD, BOS, EOS))


def saes_at(anatomy: Anatomy, hookpoints: list[Hookpoint]) -> dict[Hookpoint, TinySAE]:
    return {h: TinySAE(anatomy.width(h), seed=i) for i, h in enumerate(hookpoints)}


def hooks_in(model: nn.Module) -> int:
    """How many hooks the model's modules carry. Compare before and after: transformers leaves some of its own on a
    model that was once asked for hidden states or attentions, and on its copies."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
