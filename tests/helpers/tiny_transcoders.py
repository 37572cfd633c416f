"""Transcoders small enough to reason about."""

import torch
from torch import Tensor, nn

from tiny_saes import TinySAE


class TinyTranscoder(TinySAE):
    """A frozen ReLU transcoder with random weights, taking nothing off its input, with a skip or not."""

    def __init__(self, width: int, reads: str = "mlp_in", seed: int = 0, skips: bool = False):
        super().__init__(width, seed=seed)
        self.reads = reads
        generator = torch.Generator().manual_seed(100 + seed)
        self.W_skip = 0.3 * torch.randn(width, width, generator=generator, dtype=torch.float64) * skips

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_enc + self.b_enc)

    def skip(self, x: Tensor) -> Tensor:
        return x @ self.W_skip.T


class TheMLP(nn.Module):
    """The MLP itself as a transcoder: what it stands for, it rebuilds perfectly."""

    reads = "mlp_in"

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.forward_of_its_own = mlp.forward  # before any splice

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, feature_acts: Tensor) -> Tensor:
        return self.forward_of_its_own(feature_acts)
