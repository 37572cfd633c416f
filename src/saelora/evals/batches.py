"""The one loop over held-out rows, which every measurement runs its models in."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

import torch
from torch import Tensor

from saelora.core.eval_mode import evaluating
from saelora.core.group import ALONE, Group
from saelora.core.kl_head import kl_heads
from saelora.core.partial import CleanPass
from saelora.core.splice import Observer, TokenMask
from saelora.core.students import CLEAN, Shared, Student, Students
from saelora.evals.variant import Variant
from saelora.models.anatomy import device_of


class Batch:
    """Some rows, and the students that run on them; what these have in common is run once, when it is first needed."""

    def __init__(self, students: Students, input_ids: Tensor, mask: Tensor, start: int = 0, counts: bool = True):
        """Args:
        input_ids, mask: [batch, seq], on the model's device; the mask is True where the SAE replaces the position.
        start: the first row's number.
        counts: False where the rows are another process's, and are run to keep step with it.
        """
        self.students, self.input_ids, self.mask, self.start, self.counts = students, input_ids, mask, start, counts
        self.clean: CleanPass | None = None  # where it was made before

    @cached_property
    def shared(self) -> Shared:
        """The clean pass, and the stems that it leads to."""
        clean, students = self.clean, self.students
        if clean is not None and students.known(clean):
            return students.share(self.input_ids, None, clean)
        return students.teacher(self.input_ids)

    def hidden(self, student: Student = CLEAN, observer: Observer | None = None) -> Tensor:
        """A student's final hidden states [batch, seq, d_model]; the clean model's by default.

        ``observer`` watches its SAEs meanwhile, but not in a stem: see ``without_stem`` of ``Students``.
        """
        shared = self.shared
        if student.splice is None:
            return self.students.hidden(student, shared) if student.adapter else shared.clean.hidden
        with student.splice.observed_by(observer or student.splice.observer):
            return self.students.hidden(student, shared)

    def running_as(self, student: Student) -> AbstractContextManager[None]:
        """The model as a student, for whole passes on these rows, as long as this context is open.

        What its transcoders go by of the clean pass is found beforehand: hooks see one pass, not two.
        """
        needs = student.splice is not None and student.splice.clean_points
        return self.students.only(student, self.shared.clean if needs else None)

    def losses(
        self, named: Mapping[str, Student], observers: Mapping[Student, Observer] | None = None
    ) -> dict[str, Tensor]:
        """Of every prediction [batch, seq - 1]: ce_base, and for each student ce_NAME, kl_NAME (nats) and top1_NAME.

        top1 is 1 where the student's likeliest token is the clean model's, else 0. ``named`` holds a student or more;
        the one named "" has ce, kl and top1.
        """
        hidden = [self.hidden(student, (observers or {}).get(student)) for student in named.values()]
        clean, *flat = (h[:, :-1].flatten(0, 1) for h in (self.shared.clean.hidden, *hidden))
        own = [self.students.head(student) for student in named.values()]
        labels = self.input_ids[:, 1:]
        heads = kl_heads(flat, clean, self.students.head(), labels_N=labels.flatten(), student_heads=own)
        values = {Variant.BASE.ce: heads[0].ce_teacher_N}
        for name, out in zip(named, heads, strict=True):
            end = name and f"_{name}"
            values |= {f"ce{end}": out.ce_student_N, f"kl{end}": out.kl_N, f"top1{end}": out.top1_N}
        return {name: value.view(labels.shape) for name, value in values.items() if value is not None}


@contextmanager
def batches(
    students: Students,
    token_mask: TokenMask,
    rows: Tensor,
    *,
    batch_rows: int = 2,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n_tokens: None,
    group: Group = ALONE,
) -> Iterator[Iterator[Batch]]:
    """The batches of packed rows [n_rows, context], the students' model being ``evaluating`` as long as this is open.

    Args:
        progress: told of the tokens of each finished batch, those of all processes.
        group: the processes that divide the batches between them.
    """

    def each() -> Iterator[Batch]:
        device = device_of(students.model)
        for turn, counts in group.turns(-(-len(rows) // batch_rows)):
            start = turn * batch_rows
            ids = rows[start : start + batch_rows].to(device)
            yield Batch(students, ids, token_mask(ids), start, counts)
            progress(rows[start : start + group.world * batch_rows].numel())

    with evaluating(students.model, autocast):
        yield each()
