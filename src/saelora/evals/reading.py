"""Whether transcoders rebuild the MLPs that they stand for from what they read, or would from something else."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, get_args

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.eval_mode import evaluating
from saelora.core.numerics import wide
from saelora.core.partial import activations
from saelora.core.splice import Splice, TokenMask, splice
from saelora.errors import InputError
from saelora.models.anatomy import Anatomy, anatomy_of, device_of
from saelora.models.hookpoints import Hookpoint, ReadPoint, ReadSite

TOKENS = 512
FVUs = dict[ReadSite, float]


def fvu_by_site(
    model: nn.Module,
    saes: Mapping[Hookpoint, Any],
    token_mask: TokenMask,
    rows: Tensor,
    autocast: torch.dtype | None = None,
) -> dict[Hookpoint, FVUs]:
    """FVU of each transcoder in the original model's pass: reading what it says it reads, and where that is above 1,
    reading each other site that the model has.

    Args:
        rows: packed, [n_rows, context]; the first ones are enough.
    """
    anatomy = anatomy_of(model)
    ids = rows[: max(1, TOKENS // rows.shape[1])].to(device_of(model))
    with ExitStack() as stack:
        stack.enter_context(evaluating(model, autocast))
        stack.enter_context(lora.disabled(model))
        spliced = stack.enter_context(splice(model, saes, token_mask))
        stack.enter_context(spliced.disabled())
        points: list[Hookpoint | ReadPoint] = [*spliced.reads]
        points += [point for where in spliced.reads for point in _sites(anatomy, where)]
        seen, mask = activations(model, ids, None, points), token_mask(ids)
        found: dict[Hookpoint, FVUs] = {}
        for where, own in spliced.reads.items():
            found[where] = {own.site: _fvu(spliced, where, seen[own], seen[where], mask)}
            if found[where][own.site] > 1:
                others = [point for point in _sites(anatomy, where) if point != own]
                found[where] |= {p.site: _fvu(spliced, where, seen[p], seen[where], mask) for p in others}
    return found


def _sites(anatomy: Anatomy, where: Hookpoint) -> list[ReadPoint]:
    """What a transcoder in this layer could read."""
    found = []
    for site in get_args(ReadSite):
        try:
            anatomy.reading(ReadPoint(where.layer, site))
        except InputError:
            continue
        found.append(ReadPoint(where.layer, site))
    return found


def _fvu(spliced: Splice, where: Hookpoint, read: Tensor, target: Tensor, mask: Tensor) -> float:
    recon = spliced.made(where, spliced.given(where, read, mask), target.dtype)[1]
    x, made = wide(spliced.seen(where, target)[mask]), wide(recon[mask])
    return float((x - made).square().sum() / (x - x.mean(0)).square().sum())


def doubts(found: Mapping[Hookpoint, FVUs]) -> list[str]:
    """A line on each transcoder that predicts its MLP's output worse than that output's mean does, and why, likely."""
    told = []
    for where, fvus in found.items():
        (site, own), *others = fvus.items()
        if not own > 1:
            continue
        better = min(others, key=lambda each: each[1], default=(site, own))
        cause = "it is for another model, or for other weights of this one"
        if better[1] < min(1, own / 2):
            cause = (
                f"reading {better[0]} it would have {better[1]:.2f}, so that its files name another site than it had"
            )
        told.append(
            f"the transcoder at {where} reads {site} and has FVU {own:.2f} in the original model, where the MLP's mean "
            f"output has 1: likely {cause}"
        )
    return told
