"""What an option's value has to be beyond its type: each limit says what it expected where a value is outside it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Limit = Callable[[Any], str | None]
"""Called with a value; None where it is within the limit, else what was expected."""


@dataclass(frozen=True)
class Within:
    """Numbers from ``least`` (or above ``above``) to ``most`` (or below ``below``)."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __call__(self, value: float) -> str | None:
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        high = (self.most is None or value <= self.most) and (self.below is None or value < self.below)
        return None if low and high else self.expected()

    def expected(self) -> str:
        """In words: "1 or more", "a number above 0 and up to 1"."""
        if self.most is None and self.below is None and self.least is not None:
            return f"{self.least:,} or more"
        low = "from {:,}" if self.least is not None else "above {:,}" if self.above is not None else ""
        high = "up to {:,}" if self.most is not None else "below {:,}" if self.below is not None else ""
        low = low.format(self.least if self.least is not None else self.above)
        high = high.format(self.most if self.most is not None else self.below)
        return "a number " + " and ".join(filter(None, (low, high)))


POSITIVE = Within(least=1)
ROW = Within(least=2)  # tokens of a row: one to see, one to predict
NOT_NEGATIVE = Within(least=0)
SHARE = Within(least=0, most=1)
LEARNING_RATE = Within(least=0, most=1)  # AdamW moves every weight by about the rate: beyond 1 all of them are noise
SEED = Within(least=0, most=2**32 - 1)  # what every library's generator takes


def device(value: str) -> str | None:
    """As torch writes a device; whether this machine has it is seen later."""
    return None if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value) else "auto, cpu, cuda, cuda:N or mps"


def placement(value: str) -> str | None:
    """Whether the model has these layers is seen later."""
    part = r"\s*\d{1,6}\s*(-\s*\d{1,6}\s*)?"
    known = re.fullmatch(rf"all|after|layers:{part}(,{part})*", value)
    ranges = re.findall(r"(\d+)\s*-\s*(\d+)", value)
    if known and all(int(low) <= int(high) for low, high in ranges):
        return None
    return "after, all, or layers:13,14 (layers:13-20, the lower one first)"


def transcoder_layers(value: str) -> str | None:
    """Whether the model has these layers is seen later."""
    ranges = re.findall(r"(\d+)-(\d+)", value)
    known = re.fullmatch(r"all|every:[1-9]\d{0,5}|\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", value)
    if known and all(int(low) <= int(high) for low, high in ranges):
        return None
    return "all, every:3 (another number than 3), or layers as in 0,4,8-12"


EXEMPT = ("bos", "eos", "pad", "first")  # positions that SAEs leave alone where nobody says which


def exempt(value: str) -> str | None:
    """A position that SAEs leave alone, as ``saelora.core.token_mask`` reads it."""
    if re.fullmatch(r"bos|eos|pad|none|first(:\d{1,6})?|massive(:\d+(\.\d+)?)?|\d{1,9}", str(value)):
        return None
    return "one of bos, eos, pad, first, massive, none, or a token id"


def exempt_of_saes(value: str) -> str | None:
    """The same beside SAEs that are given, whose suite may say it."""
    told = exempt(value)
    return None if value == "suite" or told is None else told.replace("none, or", "none, suite, or")


def temperature(value: float) -> str | None:
    """Of sampling: a smaller one than this makes infinities of logits."""
    return None if value == 0 or 1e-5 <= value < float("inf") else "0 (the likeliest token), or 0.00001 or more"


def not_zero(value: float) -> str | None:
    """A strength that does something."""
    return None if value else "a number other than 0"


@dataclass(frozen=True)
class OneOf:
    """One of some words."""

    words: tuple[str, ...]

    def __call__(self, value: str) -> str | None:
        return None if value in self.words else f"one of {', '.join(self.words)}"
