"""Held-out rows whose clean pass is done once, to measure many students of one model on."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from saelora.core.partial import clean_forward, entry_layer
from saelora.core.splice import Splice, TokenMask
from saelora.core.students import Student, Students
from saelora.evals.batches import Batch, batches
from saelora.evals.loss_sums import LossSums, Means, SAESums
from saelora.evals.variant import Variant
from saelora.models.hookpoints import Hookpoint


class CachedEvaluator:
    """Measures students on the same held-out rows again and again, without running the clean model again.

    It keeps the clean model's final hidden states and the activations below ``hookpoints``: two vectors of d_model for
    each token.
    """

    def __init__(
        self,
        model: nn.Module,
        token_mask: TokenMask,
        rows: Tensor,
        hookpoints: Sequence[Hookpoint],
        *,
        batch_rows: int = 2,
        autocast: torch.dtype | None = None,
    ):
        """Run the clean model.

        Args:
            model: bare, with neither adapter nor splice.
            rows: packed, [n_rows, context].
            hookpoints: where the students' SAEs will sit; students that change anything below are measured too, at the
                price of a whole pass.
            autocast: half precision to run in.
        """
        self.rows, self.token_mask, self.autocast, self.batch_rows = rows, token_mask, autocast, batch_rows
        entry = entry_layer(hookpoints)
        with self._batches(Students(model, [])) as each:
            self._clean = [clean_forward(model, batch.input_ids, None, [entry]) for batch in each]

    def losses(
        self, model: nn.Module, student: Student, others: Sequence[Splice] = (), observe: SAESums | None = None
    ) -> LossSums:
        """Per-row sums of ce_base, ce, kl and top1 (agreement with the clean model) over counted predictions.

        Args:
            student: its splice open on the model.
            others: further splices that are open there, and are to be kept out.
            observe: also takes what the student's SAEs do.
        """
        observers = {} if observe is None else {student: observe}
        found = LossSums()
        with self._batches(Students(model, [student], others, without_stem=[student])) as each:
            for batch, clean in zip(each, self._clean, strict=True):
                batch.clean = clean
                found.update(batch.mask[:, :-1], batch.losses({"": student}, observers))
        return found

    def _batches(self, students: Students) -> AbstractContextManager[Iterator[Batch]]:
        return batches(students, self.token_mask, self.rows, batch_rows=self.batch_rows, autocast=self.autocast)


def against_start(start: LossSums, now: LossSums, seed: int = 0) -> Means:
    """Figures of a student and of the spliced model it began as, on the same rows, as ``LossSums.compute`` has them:
    ce_base, ce_sae, ce_adapted, kl_adapted, top1_adapted, gap_closed, ... and 95 % intervals, paired by row."""
    sums = {Variant.BASE.ce: now.sums[Variant.BASE.ce]}
    sums |= {Variant.SPLICED.ce: start.sums["ce"], Variant.SPLICED.kl: start.sums["kl"]}
    sums |= {f"{name}_{Variant.ADAPTED}": now.sums[name] for name in ("ce", "kl", "top1")}
    return LossSums(now.n, sums).compute(seed)
