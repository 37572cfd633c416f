"""Median norms of clean activations, from which on a position is massive (``saelora.core.massive``)."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saelora.core.massive import norms
from saelora.core.partial import activations
from saelora.core.splice import TokenMask
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint

TOKENS = 2048  # of training text that the medians are of


def calibrated(
    token_mask: TokenMask, model: nn.Module, rows: Int[Tensor, "n_rows context"], hookpoints: Iterable[Hookpoint]
) -> TokenMask:
    """The token mask with a limit for each of the hookpoints, where it spares massive positions.

    Args:
        model: bare, with neither adapter nor splice.
        rows: training text [n_rows, context], of which the first ones are read, up to ``TOKENS`` tokens.

    Raises:
        InputError: the policy exempts all that is read.
    """
    massive = token_mask.massive
    missing = [] if massive is None else [h for h in hookpoints if not massive.knows(h)]
    if massive is None or not missing:
        return token_mask
    device = next(model.parameters()).device
    found: dict[Hookpoint, list[Tensor]] = {hookpoint: [] for hookpoint in missing}
    for row in rows[: -(-TOKENS // rows.shape[1])].split(1):
        ids = row.to(device)
        mask = token_mask(ids)
        for hookpoint, x in activations(model, ids, None, missing).items():
            found[hookpoint].append(norms(x)[mask])
    if not any(len(part) for part in found[missing[0]]):
        raise InputError("no median norm of massive positions' neighbours: the token policy exempts all of the text")
    limits = {hookpoint: massive.multiple * float(torch.cat(parts).median()) for hookpoint, parts in found.items()}
    return replace(token_mask, massive=massive.with_limits(limits))
