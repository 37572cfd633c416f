"""What a splice costs and what an adapter buys back: cross entropies, KL, agreement, loss recovered, FVU, L0.

All means are over predictions, weighted by token: sums divided by one global count. A prediction counts where the
SAE replaces its input position (the token mask), which is SAELens's rule. Rows are packed: none of them is padded.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.check import check_against_whole
from saelora.core.group import ALONE, Group
from saelora.core.replacement import CASCADING, Replacement
from saelora.core.splice import SAE, Splice, TokenMask, ZeroAblation, splice
from saelora.core.students import Student, Students
from saelora.evals.batches import batches
from saelora.evals.loss_result import LossResult, SAEFigures
from saelora.evals.loss_sums import LossSums, SAESums
from saelora.evals.variant import AGAINST_BASE, Variant
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint

GPU_TOKENS = 8_192  # of a batch


def evaluate_loss(
    model: nn.Module,
    saes: dict[Hookpoint, SAE],
    token_mask: TokenMask,
    rows: Tensor,
    *,
    arms: Sequence[str] | None = None,
    batch_rows: int | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n_tokens: None,
    group: Group = ALONE,
    reference: dict[Hookpoint, SAE] | None = None,
    check: bool = True,
    replacement: Replacement = CASCADING,
) -> dict[str, Any]:
    """Evaluate the clean model against its variants on packed rows [n_rows, context].

    Args:
        saes: of the adapted model, and without ``reference`` of the spliced one too.
        arms: of "sae" (spliced), "adapted" (spliced + adapter), "adapted_clean" (adapter, SAE taken out), "zero"
            (zeros instead of reconstructions); default all that the model has.
        batch_rows: rows that go through the model together; default: 2, on a GPU about 8,192 tokens.
        progress: told of the tokens of each finished batch.
        group: the processes that divide the batches between them; each returns the same.
        reference: the SAEs as they were, where ``saes`` were trained in the model.
        check: first see that the parts of the model that are run here give what the model itself gives.
        replacement: how transcoders are put in, those of ``reference`` too.

    Returns:
        Plain data: ce_base and ce_<arm> in nats per predicted token, kl_<arm>, top1_<arm> (share of predictions
        whose likeliest token is the clean model's), ce_gap, gap_closed, loss_recovered_*, ci95 of each, the SAEs'
        fvu with ``saelora.core.spread.FIGURES``, l0 and dead_frac, n_tokens_evaluated. gap_closed is left out where
        ce_gap is not above 0. With ``reference``, "saes" are its figures and "saes_adapted" those of ``saes`` in the
        adapted model.

    Raises:
        InputError: no position of the rows is replaced by the SAE, or the model cannot be run in parts.
    """
    batch_rows = batch_rows or _batch_rows(model, rows)
    with ExitStack() as stack:
        spliced = stack.enter_context(splice(model, saes, token_mask, replacement=replacement))
        before = None
        if reference is not None:
            before = stack.enter_context(splice(model, reference, token_mask, replacement=replacement))
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
    return found[""].to_json()


def evaluate_branches(
    model: nn.Module,
    branches: Mapping[str, Student],
    token_mask: TokenMask,
    rows: Tensor,
    *,
    arms: Sequence[str] | None = None,
    batch_rows: int | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n_tokens: None,
    group: Group = ALONE,
    reference: Splice | None = None,
) -> dict[str, LossResult]:
    """``evaluate_loss`` for several students of one model, whose splices are open, by their names.

    All share the clean pass, and the students of one splice its spliced arm. ``reference``: the open splice that is the
    spliced arm of all of them, where their own SAEs were trained; the adapted arm then needs no adapter.
    """
    batch_rows = batch_rows or _batch_rows(model, rows)
    variants = [Variant(arm) for arm in arms or AGAINST_BASE]
    done: list[LossSums] = []
    with ExitStack() as stack:
        runs = _Arms(model, branches, token_mask, variants, stack, reference)
        observers = {student: SAESums.of(token_mask, rows) for student in runs.watched}
        options: Any = {"batch_rows": batch_rows, "autocast": autocast, "progress": progress, "group": group}
        for batch in stack.enter_context(batches(runs.students, token_mask, rows, **options)):
            values = batch.losses(runs.names, observers if batch.counts else {})
            if batch.counts:
                done.append(LossSums())
                done[-1].update(batch.mask[:, :-1], values)
    losses = LossSums()
    for part in group.in_turn(done):  # in the order of the rows, so that any number of processes draws the same
        losses.extend(part)
    saes = {student: sums.over(group).compute() for student, sums in observers.items()}
    starts = token_mask.row_starts(rows)
    made = {name: {**runs.results(name, losses, saes), "row_starts": starts} for name in branches}
    return {name: LossResult.model_validate(found) for name, found in made.items()}


def _batch_rows(model: nn.Module, rows: Tensor) -> int:
    """A GPU takes about as long for two short rows as for many."""
    return max(2, GPU_TOKENS // rows.shape[1]) if device_of(model).type == "cuda" else 2


class _Arms:
    """Every branch's arms as students of the clean model; what branches have in common is run once."""

    def __init__(
        self,
        model: nn.Module,
        branches: Mapping[str, Student],
        token_mask: TokenMask,
        arms: Sequence[Variant],
        stack: ExitStack,
        reference: Splice | None,
    ):
        spliced: dict[Splice, Student] = {}
        zeroed: dict[frozenset[Hookpoint], Student] = {}
        self.plan: dict[str, dict[Variant, Student]] = {}
        for name, branch in branches.items():
            assert branch.splice is not None
            before, where = reference or branch.splice, frozenset(branch.splice.saes)
            own = {Variant.SPLICED: spliced.setdefault(before, Student(before))}
            if Variant.ZERO in arms and where not in zeroed:
                zeros = dict.fromkeys(branch.splice.saes, ZeroAblation())
                zeroed[where] = Student(stack.enter_context(splice(model, zeros, token_mask)))
            if Variant.ZERO in arms:
                own[Variant.ZERO] = zeroed[where]
            if branch.adapter is not None or reference is not None:
                own[Variant.ADAPTED] = Student(branch.splice, branch.adapter)
            if branch.adapter is not None:
                own[Variant.ADAPTED_CLEAN] = Student(None, branch.adapter)
            self.plan[name] = {arm: own[arm] for arm in arms if arm in own}
        every = list(dict.fromkeys(student for plan in self.plan.values() for student in plan.values()))
        self.names = {str(i): student for i, student in enumerate(every)}
        trained = {} if reference is None else {Variant.ADAPTED: "saes_adapted"}
        self.keys = {arm: key for arm, key in {Variant.SPLICED: "saes", **trained}.items() if arm in arms}
        self.watched = list(dict.fromkeys(plan[arm] for plan in self.plan.values() for arm in self.keys))
        others = [branch.splice for branch in branches.values()] + [reference]
        self.students = Students(model, every, [each for each in others if each is not None], self.watched)

    def results(self, name: str, losses: LossSums, saes: Mapping[Student, dict[str, SAEFigures]]) -> dict[str, object]:
        """Fields of one branch's ``LossResult``; the SAEs' own figures as spliced, and where trained, as adapted."""
        numbers = {student: number for number, student in self.names.items()}
        sums = {Variant.BASE.ce: losses.sums[Variant.BASE.ce]}
        for arm, student in self.plan[name].items():
            for figure in ("ce", "kl", "top1"):
                sums[f"{figure}_{arm}"] = losses.sums[f"{figure}_{numbers[student]}"]
        own = {key: saes[self.plan[name][arm]] for arm, key in self.keys.items()}
        return {**LossSums(losses.n, sums).compute().plain(), "saes": {}, **own}
