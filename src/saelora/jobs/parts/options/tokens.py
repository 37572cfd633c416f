"""Options of --parts tokens."""

from dataclasses import dataclass
from typing import Any

from saelora.config import Configuration, Count, option
from saelora.errors import InputError


@dataclass(kw_only=True)
class Options(Configuration):
    """Tokens"""

    text_rows: int = option(20, "held-out rows that the tokens part shows in full, token by token")
    passages: int = option(10, "passages that the tokens part shows of those the adapter helps most, and hurts most")
    frequency_tokens: Count = option(
        Count(500_000), "tokens of training text that the tokens part counts token frequencies on; 0: no frequencies"
    )


def check(config: Any) -> None:
    """Raise InputError where a number is below 0."""
    for name in ("text_rows", "passages"):
        if getattr(config, name) < 0:
            raise InputError(f"{name} is {getattr(config, name)}, expected 0 or more")
