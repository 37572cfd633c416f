"""Optimisers by name, and learning-rate shapes as pure functions of how far the run is."""

import math
from typing import Literal

import torch
from torch import nn

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(progress: float, step_share: float, *, schedule: Schedule = "linear", warmup: float = 0.0) -> float:
    """The share of the peak learning rate for one step.

    Args:
        progress: fraction of the run's tokens before this step, in [0, 1).
        step_share: fraction of the run's tokens in this step; a warm-up reaches the peak at its last step.
        schedule: what follows the warm-up: constant, or a decay to zero (linear or cosine).
        warmup: fraction of the run spent warming up.
    """
    up = min(1.0, (progress + step_share) / warmup) if warmup > 0 else 1.0
    # Measured at the middle of the step, so that neither the first nor the last step is at exactly zero.
    left = 1.0 - min(1.0, progress + step_share / 2)
    down = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}[schedule]
    return up * down


def build_optimizer(
    name: Optimizer, parameters: list[nn.Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """torch's AdamW (fused where it can be) or Muon, whose first beta is its momentum."""
    if name == "muon":
        return torch.optim.Muon(
            parameters, lr=lr, momentum=betas[0], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    fused = parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
