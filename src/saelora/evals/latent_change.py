"""What a method leaves of an SAE's meaning: whether the same latents fire at the same tokens as before it."""

import torch
from torch import Tensor, nn

from saelora.core.eval_mode import eval_mode
from saelora.core.partial import activations
from saelora.core.splice import Splice, TokenMask
from saelora.core.students import Student, Students
from saelora.evals.drift.measure import clean_latents, observed
from saelora.evals.drift.result import LatentChange
from saelora.evals.firing import Firing, Seen
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint


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
    device, hookpoints = device_of(model), list(reference.saes)
    students = Students(model, [student], [reference])
    firing = {hookpoint: Firing(len(rows)) for hookpoint in hookpoints}
    with eval_mode(model), torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        for start in range(0, len(rows), batch_rows):
            batch = rows[start : start + batch_rows].to(device)
            mask = token_mask(batch)
            with students.only(Student()):
                clean = activations(model, batch, None, hookpoints)
            before_mask = {h: token_mask.replaced(h, x, mask) for h, x in clean.items()}
            before = {h: clean_latents(reference, h, x, before_mask[h]) for h, x in clean.items()}
            after: dict[Hookpoint, Seen] = {}
            assert student.splice is not None
            with students.only(student), observed(student.splice, after) as used:
                activations(model, batch, None, hookpoints)
            for hookpoint, seen in after.items():
                firing[hookpoint].update(start, before_mask[hookpoint] & used[hookpoint], before[hookpoint], seen)
    return {str(hookpoint): each.compute() for hookpoint, each in firing.items()}
