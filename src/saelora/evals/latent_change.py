"""What a method leaves of an SAE's meaning: whether the same latents fire at the same tokens as before it."""

import torch
from torch import Tensor, nn

from saelora.core.partial import activations
from saelora.core.splice import Splice, TokenMask
from saelora.core.students import Student, Students
from saelora.evals.batches import batches
from saelora.evals.drift.measure import add, clean_latents, observed
from saelora.evals.drift.result import LatentChange
from saelora.evals.firing import Firing


def latent_change(
    model: nn.Module,
    reference: Splice,
    student: Student,
    token_mask: TokenMask,
    rows: Tensor,
    *,
    batch_rows: int = 4,
    autocast: torch.dtype | None = None,
) -> dict[str, LatentChange]:
    """Compare the latents of ``reference`` on the clean model with those of a student, layers above left out.

    Args:
        reference: the frozen SAEs as they came; open on the model.
        student: its own SAEs at the same hookpoints (the very same, or trained on from them), its adapter or none.
        rows: packed, [n_rows, context].

    Returns:
        hookpoint -> how its latents fire, called base under ``reference`` and adapted under the student.
    """
    assert student.splice is not None
    students = Students(model, [student], [reference])
    firing = {hookpoint: Firing(len(rows)) for hookpoint in reference.saes}
    with batches(students, token_mask, rows, batch_rows=batch_rows, autocast=autocast) as each:
        for batch in each:
            clean = clean_latents(reference, token_mask, students, batch)
            with batch.running_as(student), observed(student.splice) as found:
                activations(model, batch.input_ids, None, list(reference.saes))
            add(firing, batch.start, clean, found)
    return {str(hookpoint): own.compute() for hookpoint, own in firing.items()}
