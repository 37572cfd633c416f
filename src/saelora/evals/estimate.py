"""An estimate with its 95 % interval, as it stands in results."""

import math

from typing_extensions import TypedDict

from saelora.records import Number


class Estimate(TypedDict):
    """A figure and the ends of its interval; None for what is undefined."""

    value: Number | None
    low: Number | None
    high: Number | None


def above(estimate: Estimate, bound: float) -> bool:
    """Whether the whole interval lies above a bound; an undefined one lies nowhere."""
    return estimate["low"] is not None and estimate["low"] > bound


def below(estimate: Estimate, bound: float) -> bool:
    """Whether the whole interval lies below a bound; an undefined one lies nowhere."""
    return estimate["high"] is not None and estimate["high"] < bound


def number(value: float | None) -> float:
    """A figure for formatting, NaN where it is undefined."""
    return math.nan if value is None else value


def numbers(estimate: Estimate) -> tuple[float, float, float]:
    """Value, low and high for formatting, NaN where they are undefined."""
    return number(estimate["value"]), number(estimate["low"]), number(estimate["high"])
