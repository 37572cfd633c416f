"""A configuration's options as flags of the command line."""

import argparse
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic.fields import FieldInfo

from saelora.config import Configuration, declared, hints_of


def add_options(parser: argparse.ArgumentParser, kind: type[Configuration]) -> None:
    """One flag a field, grouped by the class that declares it; unset flags stay out of the result."""
    hints = hints_of(kind)
    shown: set[str] = set()  # a default that a job overrides stays in the group that declares the option
    for owner in (*kind.__mro__[1:], kind):
        names = [name for name in inspect.get_annotations(owner) if name in hints and name not in shown]
        shown.update(names)
        if names:
            title = (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")
            group = parser.add_argument_group(title.lower())
            for name in names:
                _add_option(group, name, kind.model_fields[name], hints[name])


def _add_option(group: Any, name: str, field: FieldInfo, hint: Any) -> None:
    default, positional = field.default, declared(field, "positional")
    if default is None or default in ([], ()) or positional:
        shown = ""
    else:
        shown = f" (default: {' '.join(map(str, default)) if isinstance(default, list | tuple) else default})"
    text = ((field.description or "") + shown).replace("%", "%%")
    if positional:
        several = "*" if typing.get_origin(hint) is list else "?"
        group.add_argument(name, nargs=several, default=argparse.SUPPRESS, metavar=name.upper(), help=text)
        return
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType] if union else [hint]
    flag, common = "--" + name.replace("_", "-"), {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if arms[0] is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif typing.get_origin(arms[0]) is list:
        group.add_argument(flag, action="append", metavar=name.upper(), **common)
    elif typing.get_origin(arms[0]) is tuple:
        group.add_argument(flag, nargs="+", metavar=name.upper(), **common)
    elif typing.get_origin(arms[0]) is Literal:
        choices = "|".join(map(str, typing.get_args(arms[0])))
        alone: dict[str, Any] = {"nargs": "?", "const": "on"} if "on" in typing.get_args(arms[0]) else {}
        group.add_argument(flag, metavar=choices, **alone, **common)
    else:
        group.add_argument(flag, metavar=name.upper(), **common)


def as_words(kind: type[Configuration], values: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line, positional ones first; None and an empty list have no words."""
    first, words = [], []
    for name, value in values.items():
        field, flag = kind.model_fields[name], "--" + name.replace("_", "-")
        items = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
        if value is None or not items:
            continue
        if declared(field, "positional"):
            first += items
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif typing.get_origin(field.annotation) is list:
            words += [word for item in items for word in (flag, item)]
        else:
            words += [flag, *items]
    return [*first, *words]
