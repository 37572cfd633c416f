"""The objective of the method: low-rank adapt the model around its frozen SAEs, against its own clean predictions."""

from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.kl_head import kl_head
from saelora.core.replay import clean_forward, entry_layer, replay
from saelora.core.splice import Splice
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.train.loop import NonFiniteLoss
from saelora.train.optim import Schedule, lr_factor


@dataclass(frozen=True)
class DistillRecipe:
    """How the adapter is optimised. Source of the paper's values: arXiv 2501.19406 and its published code."""

    lr: float = 1.5e-3  # for a small model and short runs; larger models and longer runs may want less
    schedule: Schedule = "linear"
    warmup: float = 0.02  # share of the run
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.99)
    clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    loss: Literal["token_mean", "sequence_sum"] = "token_mean"

    def __post_init__(self) -> None:
        for name, top in (("lr", inf), ("warmup", 1), ("weight_decay", inf), ("clip", inf)):
            value = getattr(self, name)
            if not 0 <= value <= top or value == inf:
                raise InputError(f"{name} is {value}, expected 0 or more" + (f", at most {top}" if top < inf else ""))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            shown = " ".join(map(str, self.betas))
            raise InputError(f"betas are {shown}, expected two numbers in [0, 1), such as 0.9 0.99")


class Distill:
    """KL(clean || spliced + adapted) over the full vocabulary, by AdamW on the adapter alone.

    The model is PEFT-wrapped and its splice is open. Teacher and student share the prefix, derived from the lowest
    splice and the lowest adapted layer. The adapter's dropout acts on the student; dropout of the model's own, which
    GPT-2 has, would be noise that the teacher lacks, and stays off.
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
        model.eval()
        for name, module in model.named_modules():
            if "lora_dropout" in name:
                module.train()
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        device = next(model.parameters()).device
        self.device, self._autocast_dtype = device, autocast
        self.optimizer = torch.optim.AdamW(
            list(self.trainable.values()),
            lr=recipe.lr,
            betas=(recipe.betas[0], recipe.betas[1]),
            weight_decay=recipe.weight_decay,
            fused=device.type in ("cuda", "cpu"),
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
        with self._autocast(), self.spliced.disabled(), lora.disabled(self.model):
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
