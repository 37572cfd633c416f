"""What this project's own files hold, as types: they read and write the JSON of every version so far.

A file is a ``Record``, a frozen pydantic model: a key that a file lacks reads as its field's default and is not written
back, and keys that no field names are kept, so that a file of another version goes through unharmed. The result of an
evaluation is a frozen dataclass of the standard library: a field whose default is None is not written where it is None,
and keys that no field names are passed over. A field without a default must be there, null where its type allows None.

A file that was edited by hand is refused in one line that names the entry. Python's public calls return the same as
plain data, ``to_json()``: users index it and write it to files.
"""

import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from saelora.errors import InputError

R = TypeVar("R")
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
        return from_json(cls, value, path, remedy)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def from_json(kind: type[R], value: object, path: str | Path, remedy: str) -> R:
    """The record or result of this kind that plain data, read from ``path``, hold.

    Raises:
        InputError: an entry is missing or of another kind; the message names it and ends with the remedy.
    """
    # as JSON: strictly read, Python has enums, tuples and dataclasses where JSON has text, lists and objects
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")  # halves of surrogate pairs have no UTF-8
    try:
        found: R = _adapter(cast(Any, kind)).validate_json(text, strict=True)
        return found
    except ValidationError as error:
        told = _told(value, error.errors(include_url=False)[0])
        raise InputError(f"{path} is not as saelora writes it ({told}): was it edited? {remedy}") from None


def to_json(value: Any) -> Any:
    """A result as plain data."""
    if is_dataclass(value) and not isinstance(value, type):
        found = [(f, getattr(value, f.name)) for f in fields(value)]
        return {f.name: to_json(own) for f, own in found if not (own is None and f.default is None)}
    if isinstance(value, dict):
        return {str(key): to_json(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(own) for own in value]
    return value.value if isinstance(value, Enum) else value


def misfit(why: str) -> PydanticCustomError:
    """What a validator raises; it stands behind the name of the entry that it is about."""
    return PydanticCustomError("misfit", "{why}", {"why": why})


_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dataclass_type", "dict_type"), "an object"),
    **dict.fromkeys(("too_short", "too_long"), "a list of two numbers"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
}


def _told(value: Any, error: ErrorDetails) -> str:
    where = ""
    for key in error["loc"]:  # without what pydantic adds of its own: the branch of a union, "[key]"
        if isinstance(value, dict) and (key in value or error["type"] == "missing"):
            where, value = f"{where}.{key}", value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            where, value = f"{where}[{key}]", value[key] if key < len(value) else None
    where = where.removeprefix(".")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "misfit":
        return f"{where} {error['msg']}".strip()
    if error["type"] in ("enum", "literal_error"):
        expected = "one of " + ", ".join(re.findall("'([^']*)'", error["ctx"]["expected"]))
    else:
        expected = _EXPECTED.get(error["type"], error["msg"])
    return f"{where or 'it'} is {_kind_of(error['input'])}, expected {expected}"


def _kind_of(value: Any) -> str:
    """What a value is, in words, with itself where it is short."""
    name = "true or false" if isinstance(value, bool) else _KINDS.get(type(value), type(value).__name__)
    shown = repr(value)
    return f"{name} ({shown})" if len(shown) < 40 and not isinstance(value, dict | list | type(None)) else name
