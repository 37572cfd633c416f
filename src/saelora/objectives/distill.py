"""The objective of every method: train adapters, SAEs in the model or both, against the model's clean predictions."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.kl_head import kl_heads
from saelora.core.splice import Splice
from saelora.core.students import Shared, Student, Students
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.objectives.balance import BatchErrors, balanced
from saelora.objectives.tuned_sae import TunedSAE
from saelora.train.distributed import ALONE, Group
from saelora.train.loop import NonFiniteLoss
from saelora.train.memory import saved_bytes
from saelora.train.optim import Schedule, lr_factor


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


@dataclass(frozen=True)
class Branch:
    """One student in training: ``name`` is its adapter's in the PEFT model, "default" where there is one alone.

    It trains the adapter's weights, if the model has an adapter of that name, and what each TunedSAE of its splice
    trains.
    """

    name: str
    spliced: Splice
    recipe: DistillRecipe = DistillRecipe()


class Distill:
    """KL(clean || student) over the full vocabulary, by AdamW on adapters and SAEs in training alone.

    With ``objective="kl+mse"`` a branch's loss is 1/2 (FVU + KL * sg[FVU / KL]), see ``saelora.objectives.balance``.

    The model is PEFT-wrapped and its splices are open. Branches share the teacher's pass and their prefixes, as far as
    the lowest splice and the lowest adapted layer allow; each has its own optimiser and clipping, and ends up exactly
    as if it had been trained alone. The adapters' dropout acts on the students; dropout of the model's own, which GPT-2
    has, would be noise that the teacher lacks, and stays off.
    """

    def __init__(
        self,
        model: nn.Module,
        branches: Sequence[Branch],
        *,
        n_rows: int,
        autocast: torch.dtype | None = None,
        at_once: int | None = None,
        group: Group = ALONE,
    ):
        """Build it once all splices are open and all adapters are in.

        Args:
            branches: with names that differ.
            n_rows: of the whole run: the length of the schedule.
            autocast: half precision to run the model in.
            at_once: students whose activations are held at the same time; more need memory, fewer form the teacher's
                logits again for each lot. Default: all. It changes no result.
            group: the processes that divide each batch of rows between them.

        Raises:
            InputError: a branch has nothing to train, or the objective "kl+mse" and no SAE that it trains.
        """
        self.model, self.n_rows, self.group = model, n_rows, group
        self.device, self._autocast_dtype = next(model.parameters()).device, autocast
        self.head = anatomy_of(model).head
        lora.fuse(model)
        model.eval()
        for name, module in model.named_modules():
            if "lora_dropout" in name:
                module.train()
        self.runs = [_Run(model, branch, self.device) for branch in branches]
        training_saes = [run.student for run in self.runs if run.tuned]  # a stem is made without gradient
        self.students = Students(model, [run.student for run in self.runs], without_stem=training_saes)
        self.at_once = at_once or len(branches)

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """One optimiser step of every branch.

        Returns:
            0-d tensors ``loss`` (KL per token, whatever the objective), ``grad_norm`` (before clipping) and, where a
            branch's objective has it, ``fvu``; of several branches the means, and each one's own under "loss/name",
            "grad_norm/name", "fvu/name".

        Raises:
            NonFiniteLoss: of the only branch, or of all; one that alone is not finite is left as it was, for good.
        """
        mine, weight = self.group.share(rows)
        live = [run for run in self.runs if not run.failed]
        for run in live:
            run.optimizer.zero_grad(set_to_none=True)
        shared = self._teacher(mine.to(self.device, non_blocking=True))
        kls: list[Tensor] = []
        fvus: dict[str, Tensor] = {}
        for start in range(0, len(live), self.at_once):
            part = live[start : start + self.at_once]
            with _watched(part, weight) as errors:
                found = self._losses(part, shared)
            scaled = [weight * kl / run.recipe.normaliser(rows) for run, kl in zip(part, found, strict=True)]
            for i, run in enumerate(part):
                if run.branch.name in errors:
                    scaled[i], fvus[run.branch.name] = self._balanced(scaled[i], errors[run.branch.name])
            torch.stack(scaled).sum().backward()
            kls += [weight * kl.detach() for kl in found]
        self.group.sum_(kls + [p.grad for run in live for p in run.trainable.values() if p.grad is not None])
        norms = [run.clip() for run in live]
        if self.device.type == "cpu":
            self._check_finite(live, kls, norms)
        share = len(rows) / self.n_rows
        for run in live:
            if not run.failed:
                run.update(progress, share)
        return _metrics(live, [kl / rows.numel() for kl in kls], norms, fvus)

    def fit(self, rows: Tensor, n_bytes: int) -> int:
        """Hold as many students at once as ``n_bytes`` allow on batches like ``rows``; returns how many."""
        shared = self._teacher(rows.to(self.device))
        weights = [*self.model.parameters(), *self.model.buffers()]
        weights += [p for run in self.runs for sae in run.saes.values() for p in sae.parameters()]
        with self._autocast(), _watched(self.runs, 1.0):
            sizes = [saved_bytes(partial(self.students.hidden, run.student, shared), weights) for run in self.runs]
        self.at_once = min(len(self.runs), max(1, n_bytes // max(1, *sizes)))
        return self.at_once

    def loss(self, rows: Tensor) -> Tensor:
        """KL of the first branch, summed over all tokens of the rows, with its gradient."""
        return self._losses(self.runs[:1], self._teacher(rows))[0]

    def _teacher(self, rows: Tensor) -> Shared:
        with self._autocast():
            return self.students.teacher(rows)

    def _losses(self, runs: Sequence["_Run"], shared: Shared) -> list[Tensor]:
        with self._autocast():
            hidden = [self.students.hidden(run.student, shared).flatten(0, 1) for run in runs]
        return [found.kl for found in kl_heads(hidden, shared.clean.hidden.flatten(0, 1), self.head)]

    def _balanced(self, kl: Tensor, errors: BatchErrors) -> tuple[Tensor, Tensor]:
        """The loss of "kl+mse" on this process's rows, and the whole batch's FVU."""
        kl_whole = kl.detach().clone()
        self.group.sum_([kl_whole, *errors.sums.values()])
        fvu, fvu_whole = errors.fvu()
        return balanced(kl, fvu, kl_whole, fvu_whole), fvu_whole

    def _check_finite(self, live: list["_Run"], kls: list[Tensor], norms: list[Tensor]) -> None:
        whole = [bool(torch.isfinite(kl) and torch.isfinite(norm)) for kl, norm in zip(kls, norms, strict=True)]
        if not any(whole):
            raise NonFiniteLoss(f"KL is {kls[0].item()}, the gradient's norm {norms[0].item()}")
        for run, good in zip(live, whole, strict=True):
            run.failed = not good

    def _autocast(self) -> Any:
        return nullcontext() if self._autocast_dtype is None else torch.autocast(self.device.type, self._autocast_dtype)

    def state_dict(self) -> dict[str, Any]:
        """Adapters, SAEs in training and optimisers by branch: tensors and plain values only."""
        return {run.branch.name: run.state_dict() for run in self.runs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for run in self.runs:
            run.load_state_dict(state[run.branch.name])


class _Run:
    """A branch's weights and optimiser."""

    def __init__(self, model: nn.Module, branch: Branch, device: torch.device):
        self.branch, self.recipe = branch, branch.recipe
        self.adapter = lora.parameters_of(model, branch.name)
        self.student = Student(branch.spliced, branch.name if self.adapter else None)
        self.saes = {str(h): sae for h, sae in branch.spliced.saes.items() if isinstance(sae, TunedSAE)}
        self.tuned = {f"{h}.{name}": p for h, sae in self.saes.items() for name, p in sae.tuned_parameters().items()}
        self.trainable = {**self.adapter, **self.tuned}
        self.failed = False
        if not self.trainable:
            raise InputError(
                f"branch {branch.name!r} has nothing to train: give the model an adapter of that name, or the splice a "
                "TunedSAE"
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
        self.peaks = [lr for part, lr in weights if part]

    def clip(self) -> Tensor:
        """Clip the gradient; returns its norm before."""
        return nn.utils.clip_grad_norm_(list(self.trainable.values()), self.recipe.clip or inf)

    def update(self, progress: float, share: float) -> None:
        factor = lr_factor(progress, share, schedule=self.recipe.schedule, warmup=self.recipe.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """A branch without SAEs in training has no "sae": as in checkpoints from before there were any."""
        parts = {"adapter": self.adapter, "sae": self.tuned} if self.tuned else {"adapter": self.adapter}
        weights = {part: {name: p.detach() for name, p in named.items()} for part, named in parts.items()}
        return {**weights, "optimizer": self.optimizer.state_dict(), "failed": self.failed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self.adapter.items():
                parameter.copy_(state["adapter"][name])
            for name, parameter in self.tuned.items():
                parameter.copy_(state["sae"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.failed = state["failed"]


@contextmanager
def _watched(runs: Sequence[_Run], weight: float) -> Iterator[dict[str, BatchErrors]]:
    """The errors that the SAEs of branches make whose loss has them, while the context is open; by branch.

    Only those splices are watched: a splice that nobody watches may skip its latents.
    """
    watched = [run for run in runs if run.recipe.objective == "kl+mse"]
    errors = {run.branch.name: BatchErrors(weight) for run in watched}
    with ExitStack() as stack:
        for run in watched:
            stack.enter_context(run.branch.spliced.observed_by(errors[run.branch.name]))
        yield errors


def _metrics(
    runs: Sequence[_Run], losses: list[Tensor], norms: list[Tensor], fvus: dict[str, Tensor]
) -> dict[str, Tensor]:
    norms = [norm.detach() for norm in norms]
    out = {"loss": torch.stack(losses).nanmean(), "grad_norm": torch.stack(norms).nanmean()}
    if fvus:
        out["fvu"] = torch.stack(list(fvus.values())).nanmean()
    if len(runs) > 1:
        for run, loss, norm in zip(runs, losses, norms, strict=True):
            out |= {f"loss/{run.branch.name}": loss, f"grad_norm/{run.branch.name}": norm}
        out |= {f"fvu/{name}": fvu for name, fvu in fvus.items()}
    return out
