"""Results as JSON and back, and what is said of files that do not fit."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from saelora.errors import InputError
from saelora.evals.estimate import Estimate
from saelora.records import Number, from_json, to_json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    share: Number
    found: Estimate
    pair: tuple[int, Number]


@dataclass(frozen=True)
class Result:
    n: int
    by_colour: dict[Colour, Number | None]
    inner: list[Inner]
    other: Inner | None
    added: str | None = None
    colour: Colour = Colour.RED


INNER = {"share": 1, "found": {"value": 0.5, "low": None, "high": None}, "pair": [3, 0.25]}
PLAIN: dict[str, Any] = {"n": 2, "by_colour": {"blue": 0.5, "red": None}, "inner": [INNER], "other": None}


def read(plain: Any) -> Result:
    return from_json(Result, plain, "evals/x.json", "measure it again")


def test_what_is_read_is_written_again_key_by_key_in_order() -> None:
    whole = {**PLAIN, "added": "x", "colour": "blue"}
    assert list(to_json(read(whole)).items()) == list(whole.items())
    assert type(to_json(read(whole))["inner"][0]["share"]) is int


def test_a_field_with_a_default_may_be_absent_and_one_of_none_is_not_written() -> None:
    found = read(PLAIN)
    assert (found.added, found.colour) == (None, Colour.RED)
    assert to_json(found) == {**PLAIN, "colour": "red"}


def test_keys_that_no_field_names_are_passed_over() -> None:
    assert read({**PLAIN, "later": 1}) == read(PLAIN)


def test_half_of_a_surrogate_pair_is_read_as_a_question_mark() -> None:
    assert read({**PLAIN, "added": "a\ud800\U0001f600\x00"}).added == "a?\U0001f600\x00"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("n", None, "n is null, expected a whole number"),
        ("n", True, "n is true or false (True), expected a whole number"),
        ("n", 1.5, "n is a number (1.5), expected a whole number"),
        ("by_colour", {"green": 1.0}, "by_colour.green is text ('green'), expected one of red, blue"),
        ("by_colour", {"red": "x"}, "by_colour.red is text ('x'), expected a number"),
        ("inner", {}, "inner is an object, expected a list"),
        ("inner", [INNER, {**INNER, "share": "x"}], "inner[1].share is text ('x'), expected a number"),
        ("inner", [{**INNER, "pair": [1]}], "inner[0].pair[1] is missing"),
        ("inner", [{**INNER, "pair": [1, 2, 3]}], "inner[0].pair is a list, expected a list of two numbers"),
        ("inner", [{**INNER, "pair": 1}], "inner[0].pair is a whole number (1), expected a list"),
        ("inner", [{**INNER, "found": {"value": 1.0, "low": 0.0}}], "inner[0].found.high is missing"),
        ("other", 1, "other is a whole number (1), expected an object"),
        ("colour", [], "colour is a list, expected one of red, blue"),
    ],
)
def test_an_entry_of_another_kind_is_one_line_that_names_it(key: str, value: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read({**PLAIN, key: value})
    assert str(caught.value) == f"evals/x.json is not as saelora writes it ({told}): was it edited? measure it again"


def test_what_is_no_object_is_named_as_a_whole() -> None:
    with pytest.raises(InputError, match="it is a list, expected an object"):
        read([])
