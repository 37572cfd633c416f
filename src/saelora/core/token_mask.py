"""Which positions an SAE leaves alone: policies by name, and masks with the token ids looked up."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelora.core.massive import NAME as MASSIVE
from saelora.core.massive import Massive
from saelora.core.positions import positions
from saelora.errors import InputError
from saelora.identity import PolicyRecord
from saelora.limits import EXEMPT
from saelora.models.hookpoints import Hookpoint

EXEMPT_NAMES = ("bos", "eos", "pad", "first")


@dataclass(frozen=True)
class TokenPolicy:
    """Which positions the SAE leaves alone: "bos", "eos", "pad", "first" (position 0), "first:N" (the first N),
    "massive", or token ids.

    "massive", or "massive:20", is about norms and not tokens: see ``saelora.core.massive``.

    What is special about BOS (norms hundreds of times larger than any other token's) happens at position 0 whatever
    token stands there, so a text that begins with none of the exempt tokens has its first position spared too, unless a
    policy leaves "first" out. One that names "bos" without it gets "first" where the tokenizer has no BOS. ("none",)
    exempts nothing.

    Raises:
        InputError: a name that is none of these, or "none" beside others.
    """

    exempt: Sequence[str | int] = EXEMPT

    def __post_init__(self) -> None:
        for item in self.exempt:
            if _is_massive(item):
                Massive.named(str(item))
            elif isinstance(item, str) and item not in (*EXEMPT_NAMES, "none") and _first(item) is None:
                raise InputError(
                    f"token policy names {item!r}: expected any of {', '.join(EXEMPT_NAMES)}, first:4 (or another "
                    "number of positions), massive, none or a token id (a number)"
                )
        if "none" in self.exempt and len(self.exempt) > 1:
            others = ", ".join(str(item) for item in self.exempt if item != "none")
            raise InputError(f"token policy names none, which exempts nothing, beside {others}: leave one of them out")

    def resolve(self, tokenizer: Any) -> "TokenMask":
        """Look the token ids up."""
        ids: set[int] = set()
        first = max([_first(item) or 0 for item in self.exempt], default=0)
        massive = None
        for item in self.exempt:
            if _is_massive(item):
                massive = Massive.named(str(item))
                continue
            token_id = item if isinstance(item, int) else getattr(tokenizer, f"{item}_token_id", None)
            if token_id is not None:
                ids.add(token_id)
            elif item == "bos":
                first = max(first, 1)
        return TokenMask(tuple(sorted(ids)), first, "pad" in self.exempt, massive)


def _is_massive(item: str | int) -> bool:
    return isinstance(item, str) and item.partition(":")[0] == MASSIVE


def _first(name: str | int) -> int | None:
    """How many positions "first" and "first:N" name; None of other names."""
    found = re.fullmatch(r"first(?::([1-9][0-9]*))?", str(name))
    return int(found[1] or 1) if found else None


@dataclass(frozen=True)
class TokenMask:
    """A token policy with its ids looked up: input ids -> True where the SAE replaces the activation.

    Massive positions, if it spares them, are known from the activation alone: ``replaced``. Predictions count by the
    tokens, so that figures with and without them are of the same predictions.
    """

    exempt_ids: tuple[int, ...] = ()
    exempt_first: int = 0  # positions at the beginning of each text
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
            mask &= (position_BS < 0) | (position_BS >= self.exempt_first)
        return mask

    def replaced(
        self, hookpoint: Hookpoint, x: Float[Tensor, "*batch d"], mask: Bool[Tensor, "*batch"]
    ) -> Bool[Tensor, "*batch"]:
        """The positions of ``mask`` (by tokens) whose activations at a hookpoint are replaced."""
        return mask if self.massive is None else mask & ~self.massive.spared(hookpoint, x)

    def row_starts(self, rows: Int[Tensor, "n_rows context"]) -> dict[str, int]:
        """How rows of text begin: how many, how many of them with a token that is not exempt, and how many positions at
        the beginning of each are spared whatever token stands there."""
        exempt = torch.tensor(self.exempt_ids, dtype=rows.dtype, device=rows.device)
        plain = int((~torch.isin(rows[:, 0], exempt)).sum())
        return {"n_rows": len(rows), "n_without_exempt_token": plain, "n_positions_spared": self.exempt_first}

    def record(self) -> PolicyRecord:
        """For files; what spares no massive position does not name them."""
        ids, massive = list(self.exempt_ids), self.massive
        found = PolicyRecord(exempt_ids=ids, first=self.exempt_first, padding=self.exempt_padding)
        return found if massive is None else found.model_copy(update={"massive": massive.record()})
