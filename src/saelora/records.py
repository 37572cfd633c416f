"""What this project's own files hold, as frozen pydantic models: they read and write the JSON of every version so far.

A key that a file lacks reads as its field's default and is not written back. Keys that no field names are kept, so that
a file of another version goes through unharmed. A file that was edited by hand is refused in one line that names the
entry. Python's public calls return the same as plain data, ``to_json()``: users index it and write it to files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, ValidationError, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from saelora.errors import InputError

JsonObject = dict[str, Any]  # what truly has no form of ours: a file that others write, options by their names


_KINDS = {
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def _as_given(value: Any, check: Callable[[Any], float]) -> Any:
    check(value)
    return value  # a whole number stays one


Number = Annotated[float, WrapValidator(_as_given)]
Interval = Annotated[list[Number], Len(2, 2)]  # lower and upper end, of 95 % where nothing else is said


class Record(BaseModel):
    """Base of what files hold; its fields are their keys, in the order in which they are written."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    def to_json(self) -> JsonObject:
        """As plain data: what was set, and keys of other versions."""
        return self.model_dump(exclude_unset=True)

    @classmethod
    def read(cls, value: object, path: str | Path, remedy: str) -> Self:
        """The record that plain data, read from ``path``, hold.

        Raises:
            InputError: an entry is missing or of another kind; the message names it and ends with the remedy.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            told = _told(error.errors(include_url=False)[0])
            raise InputError(f"{path} is not as saelora writes it ({told}): was it edited? {remedy}") from None


def misfit(why: str) -> PydanticCustomError:
    """What a validator raises; it stands behind the name of the entry that it is about."""
    return PydanticCustomError("misfit", "{why}", {"why": why})


_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "an object"),
    **dict.fromkeys(("too_short", "too_long"), "a list of two numbers"),
    "list_type": "a list",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
}


def _told(error: ErrorDetails) -> str:
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"]).removeprefix(".")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "misfit":
        return f"{where} {error['msg']}".strip()
    return f"{where or 'it'} is {kind_of(error['input'])}, expected {_EXPECTED.get(error['type'], error['msg'])}"


def names_of(kinds: tuple[type, ...]) -> str:
    """Kinds of entries in words."""
    return " or ".join(dict.fromkeys("a number" if kind is int and float in kinds else _KINDS[kind] for kind in kinds))


def kind_of(value: Any) -> str:
    """What a value is, in words, with itself where it is short."""
    name = "true or false" if isinstance(value, bool) else _KINDS.get(type(value), type(value).__name__)
    shown = repr(value)
    return f"{name} ({shown})" if len(shown) < 40 and not isinstance(value, dict | list | type(None)) else name
