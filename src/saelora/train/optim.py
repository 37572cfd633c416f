"""Learning-rate shapes, as pure functions of how far the run is."""

import math
from typing import Literal

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
