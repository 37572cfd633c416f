"""Whether transcoders rebuild the MLPs that they stand for from what they read, or would from something else."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, get_args

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.cross_layer import Ahead
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
        own = {where: (seen[point], seen[where]) for where, point in spliced.reads.items()}
        found = {where: {spliced.reads[where].site: fvu} for where, fvu in _fvus(spliced, own, mask)}
        doubted = [where for where, fvus in found.items() if max(fvus.values()) > 1]
        # where latents write into other layers, all have to read the other site
        tried = [*spliced.reads] if doubted and spliced.crossing else doubted
        for site in get_args(ReadSite):
            reads = {where: ReadPoint(where.layer, site) for where in tried}
            pairs = {where: (seen[point], seen[where]) for where, point in reads.items() if point in seen}
            if len(pairs) == len(tried) or not spliced.crossing:
                for where, fvu in _fvus(spliced, pairs, mask):
                    found[where] |= {site: fvu} if where in doubted and site not in found[where] else {}
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


def _fvus(
    spliced: Splice, pairs: Mapping[Hookpoint, tuple[Tensor, Tensor]], mask: Tensor
) -> Iterator[tuple[Hookpoint, float]]:
    """FVU of each transcoder that reads the first of its pair, of the second."""
    ahead = Ahead()
    for where in sorted(pairs):
        read, target = pairs[where]
        recon = spliced.made(where, spliced.given(where, read, mask), mask, target.dtype, ahead)[1]
        x, made = wide(spliced.seen(where, target)[mask]), wide(recon[mask])
        yield where, float((x - made).square().sum() / (x - x.mean(0)).square().sum())


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
