"""Results <-> JSON: a frozen dataclass is an object whose keys are its fields, in their order.

A field whose default is None may be absent: results of older versions lack it, and None is not written. A field
without a default must be there, null where its type allows None. Keys that no field names are passed over.
"""

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from saelora.errors import InputError
from saelora.records import kind_of, names_of

R = TypeVar("R")


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


def from_json(kind: type[R], value: Any, path: str | Path, remedy: str) -> R:
    """The result of this kind that plain data, read from ``path``, hold.

    Raises:
        InputError: an entry is missing or of another kind; the message names it and ends with the remedy.
    """
    try:
        return typing.cast(R, _reader(typing.cast(Any, kind))(value))
    except _Misfit as error:
        told = f"{'.'.join(error.where) or 'it'} {error.why}".replace(".[", "[")
        raise InputError(f"{path} is not as saelora writes it ({told}): was it edited? {remedy}") from None


class _Misfit(Exception):
    """What does not fit, and where: keys from the outermost."""

    def __init__(self, why: str, *where: str):
        self.why, self.where = why, where

    def under(self, key: str) -> "_Misfit":
        return _Misfit(self.why, key, *self.where)


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads one kind of value: a scalar, an enum, a dataclass, a typed dict, or a list, tuple or dict of these."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        return _either(inner)
    if is_dataclass(kind) or typing.is_typeddict(kind):
        return _of_fields(kind)
    if origin is dict:
        return _of_entries(*map(_reader, inner))
    if origin is Literal:
        return _of_choices(inner)
    if origin in (list, tuple):
        return _of_items(origin, inner)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _of_enum(kind)
    return _scalar((int, float) if kind is float else (kind,))


def _scalar(kinds: tuple[type, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) in kinds:
            return value
        raise _Misfit(f"is {kind_of(value)}, expected {names_of(kinds)}")

    return read


def _of_enum(kind: type[Enum]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            expected = ", ".join(str(each.value) for each in kind)
            raise _Misfit(f"is {kind_of(value)}, expected one of {expected}") from None

    return read


def _of_choices(choices: tuple[Any, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value in choices:
            return value
        raise _Misfit(f"is {kind_of(value)}, expected one of {', '.join(map(str, choices))}")

    return read


def _either(kinds: tuple[Any, ...]) -> Callable[[Any], Any]:
    """One kind, or None; or scalars."""
    others = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(others) > 1 or others[0] in (int, float, str, bool):
        return _scalar((*kinds, int) if float in kinds else kinds)
    read = _reader(others[0])
    return lambda value: None if value is None else read(value)


def _of_fields(kind: Any) -> Callable[[Any], Any]:
    readers = {name: _reader(hint) for name, hint in typing.get_type_hints(kind).items()}
    optional = (
        {f.name for f in fields(kind) if not (f.default is f.default_factory is MISSING)}
        if is_dataclass(kind)
        else set()
    )

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit(f"is {kind_of(value)}, expected an object")
        if lacking := [name for name in readers if name not in value and name not in optional]:
            raise _Misfit("is missing", lacking[0])
        found = {}
        for name, of_field in readers.items():
            if name in value:
                found[name] = _under(name, of_field, value[name])
        return kind(**found)

    return read


def _of_entries(of_key: Callable[[Any], Any], of_value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit(f"is {kind_of(value)}, expected an object")
        return {_under(key, of_key, key): _under(key, of_value, own) for key, own in value.items()}

    return read


def _of_items(origin: Any, inner: tuple[Any, ...]) -> Callable[[Any], Any]:
    """list[X], tuple[X, ...], or tuple[X, Y] of just so many."""
    fixed = origin is tuple and inner[-1] is not ...
    readers = [_reader(kind) for kind in inner if kind is not ...]

    def read(value: Any) -> Any:
        if not isinstance(value, list) or (fixed and len(value) != len(readers)):
            raise _Misfit(f"is {kind_of(value)}, expected a list{f' of {len(readers)}' if fixed else ''}")
        own = readers if fixed else readers * len(value)
        return origin([_under(f"[{i}]", own[i], item) for i, item in enumerate(value)])

    return read


def _under(key: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except _Misfit as error:
        raise error.under(key) from None
