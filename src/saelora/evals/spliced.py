"""A model with its SAEs in, to be run as any of its variants."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.eval_mode import evaluating
from saelora.core.splice import Splice, TokenMask
from saelora.core.students import Student, Students
from saelora.evals.batches import Batch, batches
from saelora.evals.variant import Variant


@dataclass(frozen=True)
class SplicedModel:
    """A model whose splices are open; what measurements of its variants take.

    Args:
        spliced: the SAEs as they came.
        token_mask: which positions they replace.
        autocast: half precision to run in; None where the model is in float32.
        adapted: the adapted model's own open splice, where its SAEs were trained.
    """

    model: nn.Module
    spliced: Splice
    token_mask: TokenMask
    autocast: torch.dtype | None = None
    adapted: Splice | None = None

    def student(self, variant: Variant) -> Student:
        """What runs as base, spliced, adapted or adapted_clean."""
        adapter = lora.adapter_name(self.model) if variant.has_adapter else None
        return Student(self.splice_of(variant) if variant.has_saes else None, adapter)

    def splice_of(self, variant: Variant) -> Splice:
        """The splice that a variant has, or would have."""
        return self.adapted if self.adapted is not None and variant.has_adapter else self.spliced

    def students(self, students: Iterable[Student], without_stem: Iterable[Student] = ()) -> Students:
        """Students of this model; its own splices are kept out of those that do not name them."""
        own = [self.spliced] if self.adapted is None else [self.spliced, self.adapted]
        return Students(self.model, list(students), own, list(without_stem))

    def batches(
        self,
        students: Students,
        rows: Tensor,
        batch_rows: int = 2,
        progress: Callable[[int], None] = lambda n_tokens: None,
    ) -> AbstractContextManager[Iterator[Batch]]:
        """``saelora.evals.batches.batches`` of packed rows [n_rows, context]."""
        return batches(
            students, self.token_mask, rows, batch_rows=batch_rows, autocast=self.autocast, progress=progress
        )

    @contextmanager
    def running_as(self, variant: Variant) -> Iterator[None]:
        """The model as a variant, in evaluation mode and without gradient, for as long as this context is open."""
        student = self.student(variant)
        with evaluating(self.model, self.autocast), self.students([student]).only(student):
            yield
