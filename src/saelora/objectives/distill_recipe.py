"""How a student is optimised: plain numbers, which a command line reads before torch is there."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

from saelora.errors import InputError
from saelora.train.optim import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DistillRecipe:
    """How a branch is optimised. Source of the paper's values: arXiv 2501.19406 and its published code."""

    lr: float = 1.5e-3  # for a small model and short runs; larger models and longer runs may want less
    schedule: Schedule = "linear"
    warmup: float = 0.02  # share of the run
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.99)
    clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    loss: Literal["token_mean", "sequence_sum"] = "token_mean"
    objective: Literal["kl", "kl+mse"] = "kl"  # see saelora.objectives.balance
    sae_lr: float | None = None  # peak, of SAE weights; None: as lr

    def __post_init__(self) -> None:
        for name, top in (("lr", inf), ("sae_lr", inf), ("warmup", 1), ("weight_decay", inf), ("clip", inf)):
            value = getattr(self, name)
            if value is not None and (not 0 <= value <= top or value == inf):
                raise InputError(f"{name} is {value}, expected 0 or more" + (f", at most {top}" if top < inf else ""))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            shown = " ".join(map(str, self.betas))
            raise InputError(f"betas are {shown}, expected two numbers in [0, 1), such as 0.9 0.99")

    def normaliser(self, rows: Tensor) -> int:
        """What the sum of KL over all tokens of packed rows [n_rows, context] is divided by."""
        return len(rows) if self.loss == "sequence_sum" else rows.numel()
