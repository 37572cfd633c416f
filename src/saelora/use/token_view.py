"""One token of a text under the glass: its latents, what comes next, and what each latent does to that."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.models.hookpoints import Hookpoint
from saelora.use.latents import Firing, TokenLatents
from saelora.use.run import LoadedRun

_NUMBERS = 1 << 26  # of latents held at once: rows * positions * d_sae


@dataclass(frozen=True)
class NextToken:
    """A token and its probability."""

    token_id: int
    probability: float


@dataclass(frozen=True)
class Effect:
    """What setting one latent to 0 at one token does to the prediction there, all else as it was.

    Args:
        likeliest: the token that was the likeliest before, and its probability now.
        kl: KL(before || after) over the vocabulary, nats.
        now: the likeliest token now.
    """

    firing: Firing
    likeliest: NextToken
    kl: float
    now: NextToken


@dataclass(frozen=True)
class Ablations:
    """Effects of a token's strongest latents, and the likeliest next token without any of them."""

    hookpoint: Hookpoint
    before: NextToken
    effects: tuple[Effect, ...]


def steered(run: LoadedRun, steer: Mapping[Any, Any]) -> AbstractContextManager[Any]:
    """The run's current variant steered, or as it is where nothing is said."""
    return run.steer(steer) if steer else nullcontext(run)


def latents_at(
    run: LoadedRun, ids: Sequence[int], variant: str, steer: Mapping[Any, Any]
) -> dict[Hookpoint, TokenLatents]:
    """The latents of the last of these tokens, the strongest first."""
    with run.as_variant(variant), steered(run, steer):
        seen = run.latents(list(ids))
    return {hookpoint: seen.at(hookpoint)[-1] for hookpoint in seen.hookpoints}


def next_tokens(
    run: LoadedRun, ids: Sequence[int], variant: str, steer: Mapping[Any, Any], n: int
) -> tuple[NextToken, ...]:
    """The n likeliest tokens to follow these."""
    with run.as_variant(variant), steered(run, steer):
        return _likeliest(run.logits(torch.tensor([list(ids)]))[0, -1].softmax(-1), n)


def ablate(
    run: LoadedRun,
    ids: Sequence[int],
    variant: str,
    steer: Mapping[Any, Any],
    n: int,
    hookpoint: Hookpoint | None = None,
) -> Ablations:
    """The n strongest latents of the last of these tokens, at one hookpoint, set to 0 there one at a time.

    They are set after what ``steer`` does. Where the variant has no SAE in, the activation loses the latent's
    contribution and keeps the SAE's error.
    """
    found = latents_at(run, ids, variant, steer)
    where = next(iter(found)) if hookpoint is None else hookpoint
    firings = found[where].active[:n]
    given = torch.tensor([list(ids)])
    with run.as_variant(variant), steered(run, steer):
        before = run.logits(given)[0, -1].log_softmax(-1)
        rows = [_without(run, given, where, part) for part in _parts(firings, len(ids) * run.sizes[where])]
    after = torch.cat(rows) if rows else before.new_zeros(0, len(before))
    top = _likeliest(before.exp(), 1)[0]
    effects = tuple(
        Effect(
            firing,
            NextToken(top.token_id, float(row[top.token_id].exp())),
            max(0.0, float((before.exp() * (before - row)).sum())),
            _likeliest(row.exp(), 1)[0],
        )
        for firing, row in zip(firings, after, strict=True)
    )
    return Ablations(where, top, effects)


def _parts(firings: Sequence[Firing], numbers: int) -> list[Sequence[Firing]]:
    most = max(1, _NUMBERS // numbers)
    return [firings[i : i + most] for i in range(0, len(firings), most)]


def _without(
    run: LoadedRun, given: Tensor, where: Hookpoint, firings: Sequence[Firing]
) -> Float[Tensor, "n_latents vocab"]:
    """Log probabilities after the last token, each row of the batch without another latent there."""
    gone = torch.tensor([firing.latent for firing in firings])

    def change(hookpoint: Hookpoint, latents: Tensor) -> Tensor:
        if hookpoint == where:
            changed = latents.clone()
            changed[torch.arange(len(gone)), -1, gone.to(latents.device)] = 0
            return changed
        return latents

    with run.changing(change):
        return run.logits(given.expand(len(firings), -1))[:, -1].log_softmax(-1)


def _likeliest(probabilities: Float[Tensor, " vocab"], n: int) -> tuple[NextToken, ...]:
    best = probabilities.topk(n)
    return tuple(NextToken(i, p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True))
