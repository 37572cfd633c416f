"""The objective of every method: train adapters, SAEs in the model or both, against the model's clean predictions."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.check import check_against_whole
from saelora.core.group import ALONE, Group
from saelora.core.kl_head import kl_heads
from saelora.core.splice import Splice
from saelora.core.students import Shared, Students
from saelora.errors import NonFiniteLoss, first_line
from saelora.models.anatomy import device_of
from saelora.models.compiling import CompiledLayers
from saelora.objectives.balance import BatchErrors, balanced
from saelora.objectives.branch import Branch, BranchRun
from saelora.train.checkpoint import StateDict
from saelora.train.memory import saved_bytes
from saelora.train.step_graph import Graph, StepGraph


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
        graph: Graph = "auto",
        compiled: bool = False,
        say: Callable[[str], None] = warnings.warn,
    ):
        """Build it once all splices are open and all adapters are in.

        Args:
            branches: with names that differ.
            n_rows: of the whole run: the length of the schedule.
            autocast: half precision to run the model in.
            at_once: students whose activations are held at the same time; more need memory, fewer form the teacher's
                logits again for each lot. Default: all. It changes no result.
            group: the processes that divide each batch of rows between them.
            graph: whether steps are recorded and replayed, on an NVIDIA GPU; see ``StepGraph``. It changes no result.
            compiled: run steps on rows of the first one's shape through layers that torch.compile has compiled; the
                same up to rounding. All else runs the model as it is.
            say: told why steps are not recorded or not compiled, where they could be.

        Raises:
            InputError: a branch has nothing to train, the objective "kl+mse" and no SAE that it trains, or a graph that
                cannot be.
        """
        self.model, self.n_rows, self.group = model, n_rows, group
        self.device, self.autocast_dtype = device_of(model), autocast
        lora.fuse(model)
        model.eval()
        for name, module in model.named_modules():
            if "lora_dropout" in name:
                module.train()
        self.runs = [BranchRun(model, branch, self.device) for branch in branches]
        training_saes = [run.student for run in self.runs if run.tuned]  # a stem is made without gradient
        self.students = Students(model, [run.student for run in self.runs], without_stem=training_saes)
        self.head = self.students.head()
        self.at_once = at_once or len(branches)
        self.rows_at_once: int | None = None  # rows that go through the model together; None: all of a step's
        why_not = "several processes share each step" if group.world > 1 else None
        if self.students.clean_points:  # neither is tested with what a splice takes from the clean pass
            compiled, why_not = False, why_not or "transcoders read the original model's stream"
        self.graph = StepGraph(self._step, self.device, graph, why_not=why_not, say=say)
        self._say = say
        self._compiled = CompiledLayers(model) if compiled else None
        self._compiled_shape: torch.Size | None = None  # of the rows that compiled layers are made for

    def step(self, rows: Int[Tensor, "n_rows context"], progress: float) -> dict[str, Float[Tensor, ""]]:
        """One optimiser step of every branch.

        Returns:
            0-d tensors ``loss`` (KL per token, whatever the objective), ``grad_norm`` (before clipping) and, where a
            branch's objective has it, ``fvu`` and ``relative_error_mean`` (see ``BatchErrors``); of several branches
            the means, and each one's own under "loss/name", "grad_norm/name" and so on.

        Raises:
            NonFiniteLoss: of the only branch, or of all; one that alone is not finite is left as it was, for good.
        """
        for run in self.runs:
            if not run.failed:
                run.set_rate(progress, len(rows) / self.n_rows)
        return self.graph(rows)

    def _step(self, rows: Tensor) -> dict[str, Tensor]:
        """A step whose learning rates are set: what a graph records."""
        first = self._compiled_shape is None
        self._compiled_shape = self._compiled_shape or rows.shape
        if self._compiled is None or rows.shape != self._compiled_shape:
            return self._step_as_it_is(rows)
        try:
            with self._compiled.used():
                return self._step_as_it_is(rows)
        except torch._dynamo.exc.TorchDynamoException as error:
            if not first:
                raise
            self._say(f"the model's layers cannot be compiled here, so steps run as they are: {first_line(error)}")
            self._compiled = None
            return self._step_as_it_is(rows)

    def _step_as_it_is(self, rows: Tensor) -> dict[str, Tensor]:
        mine, weight = self.group.share(rows)
        live = [run for run in self.runs if not run.failed]
        for run in live:
            run.optimizer.zero_grad(set_to_none=True)
        kls: list[Tensor] = []
        saes: dict[str, dict[str, Tensor]] = {}  # figures of the SAEs, by branch
        for piece in mine.split(self.rows_at_once or len(mine)):
            found = self._add_gradients(live, piece, rows, weight, saes)
            kls = [a + b for a, b in zip(kls, found, strict=True)] if kls else found
        self.group.sum_(kls + [p.grad for run in live for p in run.trainable.values() if p.grad is not None])
        norms = [run.clip() for run in live]
        if self.device.type == "cpu":
            self._check_finite(live, kls, norms)
        for run in live:
            if not run.failed:
                run.optimizer.step()
        return _metrics(live, [kl / rows.numel() for kl in kls], norms, saes)

    def _add_gradients(
        self, live: Sequence[BranchRun], piece: Tensor, rows: Tensor, weight: float, saes: dict[str, dict[str, Tensor]]
    ) -> list[Tensor]:
        """Add to every branch's gradient what a piece of the batch ``rows`` gives; returns their KL, without gradient.

        ``saes`` is told of figures of the SAEs, which need the whole batch in one piece.
        """
        shared = self._teacher(piece.to(self.device, non_blocking=True))
        kls: list[Tensor] = []
        for start in range(0, len(live), self.at_once):
            part = live[start : start + self.at_once]
            with _watched(part, weight) as errors:
                found = self._losses(part, shared)
            scaled = [weight * kl / run.recipe.normaliser(rows) for run, kl in zip(part, found, strict=True)]
            for i, run in enumerate(part):
                if run.branch.name in errors:
                    scaled[i], saes[run.branch.name] = self._balanced(scaled[i], errors[run.branch.name])
            torch.stack(scaled).sum().backward()
            kls += [weight * kl.detach() for kl in found]
        return kls

    def check(self, rows: Int[Tensor, "n_rows context"]) -> None:
        """Raise InputError where the parts of the model that steps run are not what the model itself runs."""
        by_splice: dict[Splice, list[str]] = {}
        for run in self.runs:
            by_splice.setdefault(run.branch.spliced, []).extend([run.branch.name] if run.adapter else [])
        for spliced, adapters in by_splice.items():
            check_against_whole(
                self.model,
                spliced,
                rows,
                adapters=adapters,
                others=[other for other in by_splice if other is not spliced],
                autocast=self.autocast_dtype,
            )

    def fit(self, rows: Int[Tensor, "n_rows context"], n_bytes: int) -> int:
        """Hold as many students at once as ``n_bytes`` allow on batches like ``rows``; returns how many."""
        self.at_once = min(len(self.runs), max(1, n_bytes // self.held_bytes(rows)))
        return self.at_once

    @property
    def divisible(self) -> bool:
        """Whether a batch may go through the model in pieces: not where a loss hangs on the whole batch's variance."""
        return all(run.recipe.objective != "kl+mse" for run in self.runs)

    def held_bytes(self, rows: Int[Tensor, "n_rows context"]) -> int:
        """Bytes that the backward pass of a batch like ``rows`` needs to be held, of the student that needs most."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        weights += [p for run in self.runs for sae in run.saes.values() for p in sae.parameters()]
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            self._autocast(),
            _watched(self.runs, 1.0),
        ):  # dropout draws nothing from it
            shared = self._teacher(rows.to(self.device))
            return max(
                1, *(saved_bytes(partial(self.students.hidden, run.student, shared), weights) for run in self.runs)
            )

    def loss(self, rows: Int[Tensor, "n_rows context"]) -> Float[Tensor, ""]:
        """KL of the first branch, summed over all tokens of the rows, with its gradient."""
        return self._losses(self.runs[:1], self._teacher(rows))[0]

    def _teacher(self, rows: Tensor) -> Shared:
        with self._autocast():
            return self.students.teacher(rows)

    def _losses(self, runs: Sequence["BranchRun"], shared: Shared) -> list[Tensor]:
        with self._autocast():
            hidden = [self.students.hidden(run.student, shared).flatten(0, 1) for run in runs]
        return [found.kl for found in kl_heads(hidden, shared.clean.hidden.flatten(0, 1), self.head)]

    def _balanced(self, kl: Tensor, errors: BatchErrors) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of "kl+mse" on this process's rows, and the whole batch's figures of the SAEs."""
        kl_whole = kl.detach().clone()
        self.group.sum_([kl_whole, *errors.sums.values()])
        fvu, fvu_whole = errors.fvu()
        figures = {"fvu": fvu_whole, "relative_error_mean": errors.relative()}
        return balanced(kl, fvu, kl_whole, fvu_whole), figures

    def _check_finite(self, live: list["BranchRun"], kls: list[Tensor], norms: list[Tensor]) -> None:
        whole = [bool(torch.isfinite(kl) and torch.isfinite(norm)) for kl, norm in zip(kls, norms, strict=True)]
        if not any(whole):
            raise NonFiniteLoss(f"KL is {kls[0].item()}, the gradient's norm {norms[0].item()}")
        for run, good in zip(live, whole, strict=True):
            run.failed = not good

    def _autocast(self) -> Any:
        return nullcontext() if self.autocast_dtype is None else torch.autocast(self.device.type, self.autocast_dtype)

    def state_dict(self) -> StateDict:
        """Adapters, SAEs in training and optimisers by branch: tensors and plain values only."""
        state: StateDict = {run.branch.name: run.state_dict() for run in self.runs}
        return state if self.rows_at_once is None else {**state, "": {"rows_at_once": self.rows_at_once}}

    def load_state_dict(self, state: StateDict) -> None:
        """A run goes on in the pieces that it began in, whatever memory is free now: other pieces round otherwise."""
        self.graph.forget()
        self.rows_at_once = state.get("", {}).get("rows_at_once")
        for run in self.runs:
            run.load_state_dict(state[run.branch.name])


@contextmanager
def _watched(runs: Sequence[BranchRun], weight: float) -> Iterator[dict[str, BatchErrors]]:
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
    runs: Sequence[BranchRun], losses: list[Tensor], norms: list[Tensor], saes: dict[str, dict[str, Tensor]]
) -> dict[str, Tensor]:
    norms = [norm.detach() for norm in norms]
    out = {"loss": torch.stack(losses).nanmean(), "grad_norm": torch.stack(norms).nanmean()}
    for key in next(iter(saes.values()), {}):
        out[key] = torch.stack([figures[key] for figures in saes.values()]).nanmean()
    if len(runs) > 1:
        for run, loss, norm in zip(runs, losses, norms, strict=True):
            out |= {f"loss/{run.branch.name}": loss, f"grad_norm/{run.branch.name}": norm}
        out |= {f"{key}/{name}": value for name, figures in saes.items() for key, value in figures.items()}
    return out
