"""Numbers and texts as a reader is shown them."""

import math
import re
from typing import Any


def nats(value: float) -> str:
    """A loss or a difference of losses, to three places, or to two digits where it is smaller than they show."""
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"


def count(value: float, digits: int = 3) -> str:
    """A count as it is spoken: 400, 25k, 1.5M, 2B."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def finite(value: Any) -> float | None:
    """A number, or None where there is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def one_line(text: str) -> str:
    """Text without line breaks and control characters, which could forge lines or steer a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", " ".join(text.split()))
