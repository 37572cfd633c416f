"""How well a variant predicts a text, token by token, beside the original."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.use.run import LoadedRun
from saelora.use.token_view import steered

_AT_ONCE = 64  # positions whose distributions are set against each other at once


@dataclass(frozen=True)
class Scores:
    """Of each token of a text but the first, which nothing predicts: [seq - 1], nats.

    Args:
        loss: -log p(token) by the variant.
        original: -log p(token) by the original model, not steered.
        kl: KL(original || variant) of what they predict there, over the whole vocabulary.
    """

    loss: Float[Tensor, " seq"]
    original: Float[Tensor, " seq"]
    kl: Float[Tensor, " seq"]


def scores(run: LoadedRun, ids: Sequence[int], variant: str, steer: Mapping[Any, Any] | None = None) -> Scores:
    """Scores of a text's token ids by a variant, steered or not, against the original as it was."""
    given = torch.tensor([list(ids)])
    with run.as_variant(variant), steered(run, steer or {}):
        ours = run.logits(given)[0, :-1]
    if variant == "original" and not steer:
        theirs = ours
    else:
        with run.original():
            theirs = run.logits(given)[0, :-1]
    targets = given[0, 1:].to(ours.device)
    parts = [
        compared(ours[i : i + _AT_ONCE], theirs[i : i + _AT_ONCE], targets[i : i + _AT_ONCE])
        for i in range(0, len(targets), _AT_ONCE)
    ]
    if not parts:
        return Scores(*(torch.zeros(0) for _ in range(3)))
    return Scores(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


def compared(ours: Tensor, theirs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of both on the targets, and KL(theirs || ours), position by position, of logits [seq, vocab]."""
    q, p = ours.log_softmax(-1), theirs.log_softmax(-1)
    at = targets[:, None]
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)  # rounding leaves some a little below 0
    return -q.gather(1, at)[:, 0], -p.gather(1, at)[:, 0], kl
