"""What a splice costs and what an adapter buys back: cross entropies, KL, agreement, loss recovered, FVU, L0.

All means are over predictions, weighted by token: sums divided by one global count. A prediction counts where the
SAE replaces its input position (the token mask), which is SAELens's rule. Rows are packed: none of them is padded.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.check import check_against_whole
from saelora.core.eval_mode import eval_mode
from saelora.core.group import ALONE, Group
from saelora.core.kl_head import kl_heads
from saelora.core.splice import SAE, Splice, TokenMask, ZeroAblation, splice
from saelora.core.students import Shared, Student, Students
from saelora.evals.loss_sums import LossSums, SAESums
from saelora.evals.variant import AGAINST_BASE
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint


def evaluate_loss(
    model: nn.Module,
    saes: dict[Hookpoint, SAE],
    token_mask: TokenMask,
    rows: Tensor,
    *,
    arms: Sequence[str] | None = None,
    batch_rows: int = 2,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n_tokens: None,
    group: Group = ALONE,
    reference: dict[Hookpoint, SAE] | None = None,
    check: bool = True,
) -> dict[str, Any]:
    """Evaluate the clean model against its variants on packed rows [n_rows, context].

    Args:
        saes: of the adapted model, and without ``reference`` of the spliced one too.
        arms: of "sae" (spliced), "adapted" (spliced + adapter), "adapted_clean" (adapter, SAE taken out), "zero"
            (zeros instead of reconstructions); default all that the model has.
        progress: told of the tokens of each finished batch.
        group: the processes that divide the batches between them; each returns the same.
        reference: the SAEs as they were, where ``saes`` were trained in the model.
        check: first see that the parts of the model that are run here give what the model itself gives.

    Returns:
        Plain data: ce_base and ce_<arm> in nats per predicted token, kl_<arm>, top1_<arm> (share of predictions
        whose likeliest token is the clean model's), ce_gap, gap_closed, loss_recovered_*, ci95 of each, the SAEs'
        fvu with ``saelora.core.spread.FIGURES``, l0 and dead_frac, n_tokens_evaluated. gap_closed is left out where
        ce_gap is not above 0. With ``reference``, "saes" are its figures and "saes_adapted" those of ``saes`` in the
        adapted model.

    Raises:
        InputError: no position of the rows is replaced by the SAE, or the model cannot be run in parts.
    """
    with ExitStack() as stack:
        spliced = stack.enter_context(splice(model, saes, token_mask))
        before = None if reference is None else stack.enter_context(splice(model, reference, token_mask))
        if check:
            check_against_whole(model, spliced, rows[:batch_rows], others=[before] if before else [], autocast=autocast)
        branches = {"": Student(spliced, lora.adapter_name(model))}
        found = evaluate_branches(
            model,
            branches,
            token_mask,
            rows,
            arms=arms,
            batch_rows=batch_rows,
            autocast=autocast,
            progress=progress,
            group=group,
            reference=before,
        )
    return found[""]


def evaluate_branches(
    model: nn.Module,
    branches: Mapping[str, Student],
    token_mask: TokenMask,
    rows: Tensor,
    *,
    arms: Sequence[str] | None = None,
    batch_rows: int = 2,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n_tokens: None,
    group: Group = ALONE,
    reference: Splice | None = None,
) -> dict[str, dict[str, Any]]:
    """``evaluate_loss`` for several students of one model, whose splices are open: name -> what that returns.

    All share the clean pass, and the students of one splice its spliced arm. ``reference``: the open splice that is the
    spliced arm of all of them, where their own SAEs were trained; the adapted arm then needs no adapter.
    """
    device = device_of(model)
    done: list[LossSums] = []
    with eval_mode(model), ExitStack() as stack:
        runs = _Arms(
            model, branches, token_mask, arms or AGAINST_BASE, stack, lambda: SAESums.of(token_mask, rows), reference
        )
        for turn, counts in group.turns(-(-len(rows) // batch_rows)):
            batch = rows[turn * batch_rows : (turn + 1) * batch_rows].to(device)
            with torch.autocast(device.type, autocast) if autocast else ExitStack():
                weight, values = runs.batch(batch, token_mask, observe=counts)
            if counts:
                done.append(LossSums())
                done[-1].update(weight, values)
            progress(rows[turn * batch_rows : (turn + group.world) * batch_rows].numel())
    losses = LossSums()
    for part in group.in_turn(done):  # in the order of the rows, so that any number of processes draws the same
        losses.extend(part)
    runs.sae_sums = {student: sums.over(group) for student, sums in runs.sae_sums.items()}
    starts = token_mask.row_starts(rows)
    return {name: {**runs.results(name, losses), "row_starts": starts} for name in branches}


class _Arms:
    """Every branch's arms as students of the clean model; what branches have in common is run once."""

    def __init__(
        self,
        model: nn.Module,
        branches: Mapping[str, Student],
        token_mask: TokenMask,
        arms: Sequence[str],
        stack: ExitStack,
        unseen: Callable[[], SAESums],
        reference: Splice | None = None,
    ):
        made: dict[Any, Student] = {}
        zeros: dict[frozenset[Hookpoint], Splice] = {}
        self.sae_sums: dict[Student, SAESums] = {}
        self.plan: dict[str, dict[str, Student]] = {}
        for name, branch in branches.items():
            assert branch.splice is not None
            where = frozenset(branch.splice.saes)
            plan: dict[str, Student] = {}
            for arm in arms:
                if arm == "sae":
                    before = reference or branch.splice
                    plan[arm] = made.setdefault((arm, before), Student(before))
                    self.sae_sums.setdefault(plan[arm], unseen())
                elif arm == "zero":
                    if where not in zeros:
                        zeros[where] = stack.enter_context(
                            splice(model, dict.fromkeys(where, ZeroAblation()), token_mask)
                        )
                    plan[arm] = made.setdefault((arm, where), Student(zeros[where]))
                elif branch.adapter is not None or (arm == "adapted" and reference is not None):
                    plan[arm] = Student(branch.splice if arm == "adapted" else None, branch.adapter)
                    if arm == "adapted" and reference is not None:
                        self.sae_sums[plan[arm]] = unseen()
            self.plan[name] = plan
        every = {student: None for plan in self.plan.values() for student in plan.values()}
        self.number = {student: i for i, student in enumerate(every)}
        own = [b.splice for b in branches.values()] + [reference]
        others = [spliced for spliced in own if spliced is not None]
        watched = [s for s in every if s.adapter is not None and s in self.sae_sums]
        self.students = Students(model, list(every), others, without_stem=watched)

    def batch(
        self, input_ids: Tensor, token_mask: TokenMask, *, observe: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights [batch, seq-1] and the per-token values of every arm, under its student's number.

        ``observe``: whether the batch counts for the SAEs' own figures.
        """
        with torch.no_grad():
            shared = self.students.teacher(input_ids)
            hidden = [self._hidden(student, shared, observe) for student in self.number]
        shape = input_ids[:, 1:].shape
        flat = [h[:, :-1].flatten(0, 1) for h in (shared.clean.hidden, *hidden)]
        own = [self.students.head(student) for student in self.number]
        head = self.students.head()
        heads = kl_heads(flat[1:], flat[0], head, labels_N=input_ids[:, 1:].flatten(), student_heads=own)
        values = {}
        for i, out in enumerate(heads):
            assert out.ce_teacher_N is not None
            assert out.ce_student_N is not None
            assert out.top1_N is not None
            values["ce_base"] = out.ce_teacher_N.view(shape)
            values[f"ce_{i}"] = out.ce_student_N.view(shape)
            values[f"kl_{i}"] = out.kl_N.view(shape)
            values[f"top1_{i}"] = out.top1_N.view(shape)
        return token_mask(input_ids)[:, :-1].to(values["ce_base"].dtype), values

    def _hidden(self, student: Student, shared: Shared, observe: bool) -> Tensor:
        observer = self.sae_sums.get(student) if observe else None
        if student.splice is None or observer is None:
            return self.students.hidden(student, shared)
        with student.splice.observed_by(observer):
            return self.students.hidden(student, shared)

    def results(self, name: str, losses: LossSums) -> dict[str, Any]:
        """One branch's figures, from the sums of its arms."""
        sums = {"ce_base": losses.sums["ce_base"]}
        for arm, student in self.plan[name].items():
            for figure in ("ce", "kl", "top1"):
                sums[f"{figure}_{arm}"] = losses.sums[f"{figure}_{self.number[student]}"]
        return {**LossSums(losses.n, sums).compute(), **self._saes(name)}

    def _saes(self, name: str) -> dict[str, Any]:
        """The SAEs' own figures: as spliced, and where they were trained, as adapted."""
        figures: dict[str, Any] = {"saes": {}}
        for arm, key in (("sae", "saes"), ("adapted", "saes_adapted")):
            student = self.plan[name].get(arm)
            if student in self.sae_sums:
                figures[key] = self.sae_sums[student].compute()
        return figures
