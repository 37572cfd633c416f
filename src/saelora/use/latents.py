"""Which latents fire at which token: what ``LoadedRun.latents`` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelora.models.hookpoints import Hookpoint

SHOWN = 8  # latents of a token, in pictures


@dataclass(frozen=True)
class Firing:
    """A latent that is active at a token, and how much."""

    latent: int
    activation: float


@dataclass(frozen=True)
class TokenLatents:
    """A token of a text and its active latents, the strongest first.

    Args:
        replaced: whether the SAE replaces the activation there; where the token policy spares it, no latent is listed.
    """

    index: int
    token: str
    token_id: int
    replaced: bool
    active: tuple[Firing, ...]


@dataclass(frozen=True)
class Latents:
    """Active latents of a text, at one or more hookpoints, in one variant of the model.

    Args:
        tokens, token_ids: the text's, [seq].
        indices, values: hookpoint -> active latents and their activations at each token, the strongest first,
            [seq, most]; what a token has fewer than the fullest is filled up with latent -1 and activation 0.
        replaced: hookpoint -> where the SAE replaces the activation, [seq].
    """

    variant: str
    tokens: list[str]
    token_ids: Int[Tensor, " seq"]
    indices: Mapping[Hookpoint, Int[Tensor, "seq most"]]
    values: Mapping[Hookpoint, Float[Tensor, "seq most"]]
    replaced: Mapping[Hookpoint, Bool[Tensor, " seq"]]

    @property
    def hookpoints(self) -> tuple[Hookpoint, ...]:
        return tuple(self.indices)

    def at(self, hookpoint: Hookpoint | str | None = None) -> list[TokenLatents]:
        """Token by token, at a hookpoint; the first one by default."""
        where = next((h for h in self.indices if hookpoint in (None, h, str(h))), None)
        if where is None:
            raise KeyError(f"{hookpoint}: expected one of {', '.join(map(str, self.indices))}")
        rows = zip(self.indices[where].tolist(), self.values[where].tolist(), strict=True)
        return [
            TokenLatents(
                i,
                self.tokens[i],
                int(self.token_ids[i]),
                bool(self.replaced[where][i]),
                tuple(Firing(latent, value) for latent, value in zip(*row, strict=True) if latent >= 0),
            )
            for i, row in enumerate(rows)
        ]

    def __iter__(self) -> Iterator[TokenLatents]:
        return iter(self.at())

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        lines = [f"{len(self)} tokens, {self.variant}"]
        for hookpoint in self.indices:
            lines.append(f"{hookpoint}: strongest latents (activation)")
            lines += [f"{each.token!r:>16}  {_told(each)}" for each in self.at(hookpoint)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tables = []
        for hookpoint in self.indices:
            rows = "".join(
                f"<tr><td>{each.index}</td><td><code>{escape(repr(each.token)[1:-1])}</code></td>"
                f"<td style='text-align:left'>{escape(_told(each))}</td></tr>"
                for each in self.at(hookpoint)
            )
            head = "<tr><th></th><th>token</th><th style='text-align:left'>strongest latents (activation)</th></tr>"
            tables.append(
                f"<table><caption>{escape(str(hookpoint))}, {escape(self.variant)}</caption>{head}{rows}</table>"
            )
        return "".join(tables)


def _told(each: TokenLatents) -> str:
    if not each.replaced:
        return "left alone by the token policy"
    more = f", and {len(each.active) - SHOWN} more" if len(each.active) > SHOWN else ""
    return ", ".join(f"{f.latent} ({f.activation:.3g})" for f in each.active[:SHOWN]) + more or "none"


def active_of(
    latents: Float[Tensor, "seq d_sae"], replaced: Bool[Tensor, " seq"]
) -> tuple[Int[Tensor, "seq most"], Float[Tensor, "seq most"]]:
    """The latents that are not zero where the SAE replaces, in order of their activation."""
    kept = torch.where(replaced[:, None], latents, 0)
    most = int((kept != 0).sum(-1).max()) if len(kept) else 0
    if not most:
        empty = torch.zeros(len(kept), 0)
        return empty.long(), empty
    # those that are zero come last, those below zero (of steering) before them
    order = torch.where(kept != 0, kept, -torch.inf)
    values, indices = order.float().topk(most, dim=-1)
    there = values > -torch.inf
    return torch.where(there, indices, -1).cpu(), torch.where(there, values, 0).cpu()
