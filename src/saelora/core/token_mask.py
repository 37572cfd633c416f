"""Which positions an SAE leaves alone: policies by name, and masks with the token ids looked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelora.core.massive import NAME as MASSIVE
from saelora.core.massive import Massive
from saelora.core.positions import positions
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint

EXEMPT_NAMES = ("bos", "eos", "pad", "first")


@dataclass(frozen=True)
class TokenPolicy:
    """Which positions the SAE leaves alone: "bos", "eos", "pad", "first" (position 0), "massive", or token ids.

    "massive", or "massive:20", is about norms and not tokens: see ``saelora.core.massive``.

    A tokenizer without BOS gets "first" added to a policy that names "bos", because what is special about
    BOS (norms hundreds of times larger than any other token's) then happens at position 0.
    """

    exempt: Sequence[str | int] = ("bos", "eos", "pad")

    def resolve(self, tokenizer: Any) -> "TokenMask":
        """Look the token ids up.

        Raises:
            InputError: a name that is not one of EXEMPT_NAMES.
        """
        ids: set[int] = set()
        first = "first" in self.exempt
        massive = None
        for item in self.exempt:
            if isinstance(item, str) and item.partition(":")[0] == MASSIVE:
                massive = Massive.named(item)
                continue
            if isinstance(item, str) and item not in EXEMPT_NAMES:
                raise InputError(
                    f"token policy names {item!r}: expected any of {', '.join(EXEMPT_NAMES)}, massive or a token id "
                    "(a number)"
                )
            token_id = item if isinstance(item, int) else getattr(tokenizer, f"{item}_token_id", None)
            if token_id is not None:
                ids.add(token_id)
            elif item == "bos":
                first = True
        return TokenMask(tuple(sorted(ids)), first, "pad" in self.exempt, massive)


@dataclass(frozen=True)
class TokenMask:
    """A token policy with its ids looked up: input ids -> True where the SAE replaces the activation.

    Massive positions, if it spares them, are known from the activation alone: ``replaced``. Predictions count by the
    tokens, so that figures with and without them are of the same predictions.
    """

    exempt_ids: tuple[int, ...] = ()
    exempt_first: bool = False
    exempt_padding: bool = True
    massive: Massive | None = None

    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Tensor | None = None, past: int = 0
    ) -> Bool[Tensor, "batch seq"]:
        """Attention masks cover ``past`` cached tokens too, as in ``generate()``: [batch, past + seq]."""
        return self.at(input_ids, positions(input_ids, attention_mask, past))

    def at(
        self, input_ids: Int[Tensor, "batch seq"], position_BS: Int[Tensor, "batch seq"]
    ) -> Bool[Tensor, "batch seq"]:
        """The same where positions are known, -1 for padding."""
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        for token_id in self.exempt_ids:
            mask &= input_ids != token_id
        if self.exempt_padding:
            mask &= position_BS >= 0
        if self.exempt_first:
            mask &= position_BS != 0
        return mask

    def replaced(self, hookpoint: Hookpoint, x: Tensor, mask: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
        """The positions of ``mask`` (by tokens) whose activations [batch, seq, d] at a hookpoint are replaced."""
        return mask if self.massive is None else mask & ~self.massive.spared(hookpoint, x)

    def to_dict(self) -> dict[str, Any]:
        out = {"exempt_ids": list(self.exempt_ids), "first": self.exempt_first, "padding": self.exempt_padding}
        return out if self.massive is None else {**out, "massive": self.massive.to_dict()}
