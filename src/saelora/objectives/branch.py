"""One student in training: its weights, its optimiser."""

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.splice import Splice
from saelora.core.students import Student
from saelora.errors import InputError
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.train.checkpoint import StateDict
from saelora.train.optim import lr_factor


@dataclass(frozen=True)
class Branch:
    """One student in training: ``name`` is its adapter's in the PEFT model, "default" where there is one alone.

    It trains the adapter's weights, if the model has an adapter of that name, and what each TrainableSAE of its splice
    trains.
    """

    name: str
    spliced: Splice
    recipe: DistillRecipe = DistillRecipe()


class BranchRun:
    """A branch's weights and optimiser."""

    def __init__(self, model: nn.Module, branch: Branch, device: torch.device):
        self.branch, self.recipe = branch, branch.recipe
        self.adapter = lora.parameters_of(model, branch.name)
        self.student = Student(branch.spliced, branch.name if self.adapter else None)
        self.saes = {str(h): sae for h, sae in branch.spliced.saes.items() if isinstance(sae, TrainableSAE)}
        self.tuned = {f"{h}.{name}": p for h, sae in self.saes.items() for name, p in sae.tuned_parameters().items()}
        self.trainable = {**self.adapter, **self.tuned}
        self.failed = False
        if not self.trainable:
            raise InputError(
                f"branch {branch.name!r} has nothing to train: give the model an adapter of that name, or the splice a "
                "TrainableSAE"
            )
        if self.recipe.objective == "kl+mse" and not self.tuned:
            raise InputError(
                "objective kl+mse weighs the SAE's own error, and this SAE is frozen: use kl, or a method that trains "
                "the SAE"
            )
        for parameter in self.adapter.values():
            parameter.requires_grad_(True)  # PEFT lets only the active adapter train
        sae_lr = self.recipe.lr if self.recipe.sae_lr is None else self.recipe.sae_lr
        weights = [(self.adapter, self.recipe.lr), (self.tuned, sae_lr)]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(part.values()), "lr": lr} for part, lr in weights if part],
            betas=(self.recipe.betas[0], self.recipe.betas[1]),
            weight_decay=self.recipe.weight_decay,
            fused=device.type in ("cuda", "cpu"),
        )
        self._on_gpu = device.type == "cuda"
        self._keep_rates()
        self.peaks = [lr for part, lr in weights if part]

    def clip(self) -> Float[Tensor, ""]:
        """Clip the gradient; returns its norm before."""
        return nn.utils.clip_grad_norm_(list(self.trainable.values()), self.recipe.clip or inf)

    def set_rate(self, progress: float, share: float) -> None:
        """The learning rates of a step that takes the run from ``progress`` on by ``share``."""
        factor = lr_factor(progress, share, schedule=self.recipe.schedule, warmup=self.recipe.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            if self._on_gpu:
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    def _keep_rates(self) -> None:
        """On a GPU rates and counts of steps stay there, so that a recorded step finds them."""
        for group in self.optimizer.param_groups if self._on_gpu else ():
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
            group["capturable"] = True

    def state_dict(self) -> StateDict:
        """A branch without SAEs in training has no "sae": as in checkpoints from before there were any."""
        parts = {"adapter": self.adapter, "sae": self.tuned} if self.tuned else {"adapter": self.adapter}
        weights = {part: {name: p.detach() for name, p in named.items()} for part, named in parts.items()}
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        return {**weights, "optimizer": optimizer, "failed": self.failed}

    def load_state_dict(self, state: StateDict) -> None:
        with torch.no_grad():
            for name, parameter in self.adapter.items():
                parameter.copy_(state["adapter"][name])
            for name, parameter in self.tuned.items():
                parameter.copy_(state["sae"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._keep_rates()
        self.failed = state["failed"]
