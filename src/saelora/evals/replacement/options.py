"""Options of --parts replacement."""

from typing import Literal

from saelora.config import Configuration, Count, option
from saelora.errors import InputError
from saelora.limits import POSITIVE


class Options(Configuration):
    """Replacement"""

    replacement_modes: tuple[Literal["cascading", "parallel", "independent"], ...] = option(
        ("cascading", "parallel", "independent"), "modes that the replacement part measures"
    )
    replacement_sizes: tuple[int, ...] = option(
        (1, 3, 5, 10, 15, 30),
        "how many MLPs the replacement part replaces at a time, evenly spread over the layers; more than there are "
        "transcoders stands for all",
        limit=POSITIVE,
    )
    replacement_tokens: Count = option(
        8_192, "held-out tokens of the replacement part, in evenly spaced rows", limit=POSITIVE
    )


def check(config: Configuration) -> None:
    """Raise InputError where nothing would be measured."""
    modes, sizes = (getattr(config, name) for name in ("replacement_modes", "replacement_sizes"))
    if getattr(config, "add_error", False):
        raise InputError(
            "--parts replacement measures what transcoders cost, and with add_error they cost nothing: leave it out"
        )
    if not modes:
        raise InputError("replacement_modes is empty: give some of cascading parallel independent")
    if not sizes and set(modes) != {"independent"}:
        raise InputError("replacement_sizes is empty: give one or more, such as 1 5 30")
