"""Options of --parts tokens."""

from saelora.config import Configuration, Count, option
from saelora.limits import NOT_NEGATIVE


class Options(Configuration):
    """Tokens"""

    text_rows: int = option(20, "held-out rows that the tokens part shows in full, token by token", limit=NOT_NEGATIVE)
    passages: int = option(
        10, "passages that the tokens part shows of those the adapter helps most, and hurts most", limit=NOT_NEGATIVE
    )
    frequency_tokens: Count = option(
        500_000,
        "tokens of training text that the tokens part counts token frequencies on; 0: no frequencies",
        limit=NOT_NEGATIVE,
    )
