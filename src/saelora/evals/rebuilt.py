"""How transcoders rebuild their MLPs' outputs in the model as it is, whichever others there are: one pass for all."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saelora.core.group import ALONE, Group
from saelora.core.partial import activations
from saelora.core.splice import TokenMask
from saelora.core.students import Students
from saelora.evals.batches import batches
from saelora.evals.loss_result import SAEFigures
from saelora.evals.loss_sums import SAESums
from saelora.models.hookpoints import Hookpoint, ReadPoint

Transcoders = Mapping[Hookpoint, Any]


@torch.no_grad()
def evaluate_rebuilding(
    model: nn.Module,
    sets: Mapping[str, Transcoders],
    token_mask: TokenMask,
    rows: Int[Tensor, "n_rows context"],
    *,
    progress: Callable[[int], None] = lambda n_tokens: None,
    group: Group = ALONE,
) -> dict[str, dict[str, SAEFigures]]:
    """FVU of the MLP's output, L0, dead latents and what stands beside them, on packed rows.

    Args:
        sets: by name, transcoders (``saes.transcoder.Transcoder``) by where they write; each reads the clean stream.
        progress: told of the tokens of each finished batch.
        group: the processes that divide the batches between them; each returns the same.

    Returns:
        By the set's name, then by hookpoint.
    """
    sums = {name: SAESums.of(token_mask, rows) for name in sets}
    reads = {h: ReadPoint(h.layer, found.reads) for one in sets.values() for h, found in one.items()}
    points: list[Hookpoint | ReadPoint] = [*reads, *reads.values()]
    students = Students(model, [])
    with batches(students, token_mask, rows, batch_rows=2, progress=progress, group=group) as each:
        for batch in each:
            found = activations(model, batch.input_ids, None, points)
            for hookpoint, point in reads.items() if batch.counts else ():
                mask_BS = token_mask.replaced(hookpoint, found[hookpoint], batch.mask)
                x_ND, y_NO = found[point][mask_BS].float(), found[hookpoint][mask_BS].float()
                for name in (name for name, one in sets.items() if hookpoint in one):
                    latents = sets[name][hookpoint].encode(x_ND)
                    every_N = torch.ones(len(x_ND), dtype=torch.bool, device=x_ND.device)
                    sums[name](hookpoint, y_NO, latents, sets[name][hookpoint](x_ND), every_N)
    return {name: one.over(group).compute() for name, one in sums.items()}
