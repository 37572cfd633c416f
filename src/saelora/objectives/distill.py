"""The objective of the method: low-rank adapt the model around its frozen SAEs, against its own clean predictions."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.kl_head import kl_head
from saelora.core.replay import clean_forward, entry_layer, replay
from saelora.core.splice import Splice
from saelora.models.anatomy import anatomy_of
from saelora.train.loop import NonFiniteLoss
from saelora.train.optim import Optimizer, Schedule, build_optimizer, lr_factor


@dataclass(frozen=True)
class DistillRecipe:
    """How the adapter is optimised. Source of the paper's values: arXiv 2501.19406 and its published code."""

    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    schedule: Schedule = "linear"
    warmup: float = 0.02  # share of the run
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    loss: Literal["token_mean", "sequence_sum"] = "token_mean"


class Distill:
    """KL(clean || spliced + adapted) over the full vocabulary, by AdamW on the adapter alone.

    The model is PEFT-wrapped and its splice is open. Teacher and student share the prefix, derived from the lowest
    splice and the lowest adapted layer; dropout acts on the student only.
    """

    def __init__(
        self,
        model: nn.Module,
        spliced: Splice,
        recipe: DistillRecipe,
        *,
        n_rows: int,
        autocast: torch.dtype | None = None,
    ):
        self.model, self.spliced, self.recipe, self.n_rows = model, spliced, recipe, n_rows
        self.head = anatomy_of(model).head
        self.entry = entry_layer(spliced.saes, lora.adapted_layers(model))
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        device = next(model.parameters()).device
        self.device, self._autocast_dtype = device, autocast
        self.optimizer = build_optimizer(
            recipe.optimizer,
            list(self.trainable.values()),
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        rows = rows.to(self.device, non_blocking=True)
        kl = self.loss(rows)
        if self.device.type == "cpu" and not torch.isfinite(kl):
            raise NonFiniteLoss(f"KL is {kl.item()}")
        scale = len(rows) if self.recipe.loss == "sequence_sum" else rows.numel()
        self.optimizer.zero_grad(set_to_none=True)
        (kl / scale).backward()
        clip = self.recipe.clip or float("inf")
        grad_norm = nn.utils.clip_grad_norm_(list(self.trainable.values()), clip)
        if self.device.type == "cpu" and not torch.isfinite(grad_norm):
            raise NonFiniteLoss(f"the gradient's norm is {grad_norm.item()}")
        factor = lr_factor(progress, len(rows) / self.n_rows, schedule=self.recipe.schedule, warmup=self.recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor
        self.optimizer.step()
        return {"loss": kl.detach() / rows.numel(), "grad_norm": grad_norm.detach()}

    def loss(self, rows: Tensor) -> Tensor:
        """Sum of KL over all tokens of the rows, with its gradient."""
        with self._autocast(), self.spliced.disabled(), lora.disabled(self.model), _eval_mode(self.model):
            clean = clean_forward(self.model, rows, None, [self.entry])
        with self._autocast():
            student = replay(self.model, rows, None, self.entry, clean.entries.get(self.entry))
        return kl_head(student.flatten(0, 1), clean.hidden.flatten(0, 1), self.head).kl

    def _autocast(self) -> Any:
        return nullcontext() if self._autocast_dtype is None else torch.autocast(self.device.type, self._autocast_dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": {k: p.detach() for k, p in self.trainable.items()}, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(state["adapter"][name])
        self.optimizer.load_state_dict(state["optimizer"])


class _eval_mode:
    """Dropout off inside, as before afterwards."""

    def __init__(self, model: nn.Module):
        self.modules: Sequence[nn.Module] = [m for m in model.modules() if m.training]

    def __enter__(self) -> None:
        for module in self.modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.training = True
