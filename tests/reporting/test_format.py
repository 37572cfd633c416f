"""Numbers and texts as a reader is shown them."""

import math

import pytest

from saelora.reporting.format import count, finite, nats, one_line


@pytest.mark.parametrize(("n", "said"), [(400, "400"), (25_000, "25k"), (1_500_000, "1.5M"), (2e9, "2B"), (0, "0")])
def test_counts_are_written_short(n: float, said: str) -> None:
    assert count(n) == said


def test_a_count_has_as_many_digits_as_are_asked_for() -> None:
    assert [count(12_345, digits) for digits in (3, 6)] == ["12.3k", "12.345k"]


@pytest.mark.parametrize(
    ("value", "said"), [(0.1234, "0.123"), (-0.01, "-0.010"), (0.00123, "0.0012"), (-2.5e-6, "-2.5e-06"), (0, "0.000")]
)
def test_losses_too_small_for_three_places_are_written_by_their_digits(value: float, said: str) -> None:
    assert nats(value) == said


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "3"])
def test_what_is_no_number_is_none(value: object) -> None:
    assert finite(value) is None
    assert finite(3) == 3.0


def test_text_of_others_cannot_break_a_line_or_steer_a_terminal() -> None:
    assert one_line("a\n b\x1b[2J\tc") == "a b[2J c"
