"""Held-out rows whose clean pass is done once, to measure many students of one model on."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from saelora.core.eval_mode import eval_mode
from saelora.core.kl_head import kl_heads
from saelora.core.partial import NO_PREFIX, CleanPass, clean_forward, entry_layer
from saelora.core.splice import Splice, TokenMask
from saelora.core.students import Student, Students
from saelora.evals.loss_sums import LossSums, SAESums
from saelora.models.anatomy import device_of
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
        self.rows, self.token_mask, self.autocast = rows, token_mask, autocast
        self.device = device_of(model)
        entry = entry_layer(hookpoints)
        self._clean: list[tuple[Tensor, CleanPass]] = []
        with eval_mode(model), self._autocast():
            for batch in rows.split(batch_rows):
                ids = batch.to(self.device)
                self._clean.append((ids, clean_forward(model, ids, None, [entry])))

    def losses(
        self, model: nn.Module, student: Student, others: Sequence[Splice] = (), observe: SAESums | None = None
    ) -> LossSums:
        """Per-row sums of ce_base, ce, kl and top1 (agreement with the clean model) over counted predictions.

        Args:
            student: its splice open on the model.
            others: further splices that are open there, and are to be kept out.
            observe: also takes what the student's SAEs do.
        """
        students = Students(model, [student], others)
        head, own = students.head(), students.head(student)
        found = LossSums()
        with eval_mode(model), torch.no_grad(), self._autocast():
            for ids, clean in self._clean:
                stored = students.enters(student) in (NO_PREFIX, *clean.entries)
                with student.splice.observed_by(observe) if student.splice else nullcontext():
                    shared = students.share(ids, None, clean) if stored else students.teacher(ids)
                    hidden = students.hidden(student, shared)
                labels = ids[:, 1:]
                flat = [h[:, :-1].flatten(0, 1) for h in (hidden, clean.hidden)]
                (out,) = kl_heads(flat[:1], flat[1], head, labels_N=labels.flatten(), student_heads=[own])
                values = {"ce_base": out.ce_teacher_N, "ce": out.ce_student_N, "kl": out.kl_N, "top1": out.top1_N}
                shaped = {name: value.view(labels.shape) for name, value in values.items() if value is not None}
                found.update(self.token_mask(ids)[:, :-1].to(shaped["ce"].dtype), shaped)
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def against_start(start: LossSums, now: LossSums, seed: int = 0) -> dict[str, Any]:
    """Figures of a student and of the spliced model it began as, on the same rows, as ``LossSums.compute`` has them:
    ce_base, ce_sae, ce_adapted, kl_adapted, top1_adapted, gap_closed, ... and 95 % intervals, paired by row."""
    sums = {"ce_base": now.sums["ce_base"], "ce_sae": start.sums["ce"], "kl_sae": start.sums["kl"]}
    sums |= {f"{name}_adapted": now.sums[name] for name in ("ce", "kl", "top1")}
    return LossSums(now.n, sums).compute(seed)
