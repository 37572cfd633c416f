"""Pydantic models <-> YAML. One declaration of an option serves the command line (flags), the file and Python.

A job's configuration is a ``Configuration`` whose fields are made by ``option``. Flags override the YAML file, the file
overrides defaults, and an unknown key is an error that names the nearest known one. A configuration knows which of its
options were given, so that one given as what happens to be its default is not taken for left out.

pydantic keeps the fields; what a text from YAML or a flag means is read here, since it takes 25k for a number and says
in one line what it expected.
"""

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from saelora.errors import InputError, on_one_line
from saelora.limits import Limit

C = TypeVar("C", bound="Configuration")
_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}
_LARGEST = 10**15  # a count; far beyond any run, and exact in a float
Count = Annotated[int, "a whole number that may be written 25k, 15M, 2B or 1e6"]
Options = dict[str, Any]  # of a job; may be written with - or _
Named = dict[str, Options]  # names are kept as they are written


class Configuration(BaseModel):
    """Base of every configuration: frozen, each option checked when it is made; it knows which ones were given.

    Raises:
        InputError: an unknown key (the nearest known one is named), a value of the wrong kind or outside its limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # built when used: --help never does

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Mapping[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """The values as their fields' types; InputError, unlike ValueError, leaves pydantic as it is."""
        source = (info.context or {}).get("source", "options")
        hints, limits = hints_of(cls), limits_of(cls)
        check_keys(values, hints, source)
        made = {key: coerce(hints[key], value, cls.label(key, source)) for key, value in values.items()}
        for key, value in made.items():
            check_limit(limits.get(key), value, cls.label(key, source))
        return made

    @classmethod
    def label(cls, key: str, source: str) -> str:
        """What messages call an option that stands in ``source``."""
        return key

    @property
    def given(self) -> frozenset[str]:
        """The options that were given by flag, file or keyword, defaults among them; None gives none."""
        return frozenset(name for name in self.model_fields_set if getattr(self, name) is not None)


def option(default: Any, help: str, *, positional: bool = False, limit: Limit | None = None) -> Any:
    """A configuration field: its default and one line that says what it is, with its unit.

    ``limit`` holds for the value, or each one of a list; None is always within it.
    """
    declared: dict[str, Any] = {"positional": positional, "limit": limit}
    return Field(default, description=help, json_schema_extra=declared)


def build(kind: type[C], values: Mapping[str, Any], source: str = "options") -> C:
    """Make a configuration from plain values, checked key by key; ``source`` is where they stand, for messages.

    Raises:
        InputError: as ``Configuration`` does.
    """
    return kind.model_validate(dict(values), context={"source": source})


def configured(kind: type[C], config: C | None, values: Mapping[str, Any]) -> C:
    """What a job was called with, checked: a configuration made before, or options by keyword.

    Raises:
        InputError: both, a configuration of another job, or as ``Configuration`` does.
    """
    job = kind.__module__.rpartition(".")[2]
    if config is None:
        return build(kind, values)
    if type(config) is not kind:
        raise InputError(
            f"{job} got {str(config)[:60]!r}, expected options by keyword, {job}(out=..., ...), "
            f"or a {kind.__module__}.Config"
        )
    if values:
        raise InputError(f"{job} got a Config and {', '.join(values)} beside it: put everything into one of them")
    return config


def check_keys(keys: Iterable[str], known: Iterable[str], source: Path | str = "") -> None:
    """Raise InputError where a key is none of the known ones, naming the nearest, and where they stand."""
    known = sorted(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": expected one of {', '.join(known)}"
            raise InputError(f"unknown key {key!r}{f' in {source}' if source else ''}{hint}")


def hints_of(kind: type[Configuration]) -> dict[str, Any]:
    """The options of a configuration, and the type that each declares."""
    return {
        name: Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        for name, field in kind.model_fields.items()
    }


def limits_of(kind: type[Configuration]) -> dict[str, Limit]:
    """The limits of a configuration's options, where they have one."""
    found = {name: declared(field, "limit") for name, field in kind.model_fields.items()}
    return {name: limit for name, limit in found.items() if limit is not None}


def declared(field: FieldInfo, name: str) -> Any:
    """What ``option`` was told of a field."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None


def check_limit(limit: Limit | None, value: Any, key: str) -> None:
    """Raise InputError where a value, or one of several, is outside its limit."""
    for item in value if isinstance(value, list | tuple) else [value]:
        expected = None if limit is None or item is None else limit(item)
        if expected:
            shown = repr(item) if isinstance(item, str) else item
            raise InputError(f"{key} is {shown}, expected {expected}")


def updated(config: C, values: Mapping[str, Any], source: str = "options") -> C:
    """A copy with other values, checked; given is what was given before.

    Raises:
        InputError: as ``Configuration`` does.
    """
    made = build(type(config), {**vars(config), **values}, source)
    return made.model_construct({*config.given}, **vars(made))


def coerce(hint: Any, value: Any, key: str) -> Any:
    """A YAML, flag or Python value as the type a field declares."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if hint in MAPPINGS:
        return _mappings(hint, value, key)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return coerce(next(arm for arm in typing.get_args(hint) if arm is not types.NoneType), value, key)
    if origin in (list, tuple):
        items = value if isinstance(value, list | tuple) else [value]
        made = [coerce(typing.get_args(hint)[0], item, key) for item in items]
        return made if origin is list else tuple(made)
    if origin is Literal:
        if isinstance(value, bool) and {"on", "off"} <= {*typing.get_args(hint)}:
            return "on" if value else "off"  # YAML reads on and off so
        if value not in typing.get_args(hint):
            raise InputError(f"{key}: got {value!r}, expected one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    try:
        return _plain(hint, value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{key}: got {value!r}, expected {_KIND_NAMES[hint]}") from None


_KIND_NAMES = {Count: "a count such as 25000, 25k or 15M", int: "a whole number", float: "a number"}
_KIND_NAMES |= {str: "text that is not empty", bool: "true or false"}


MAPPINGS: dict[Any, str] = {Options: "option: value lines", Named: "name: {option: value, ...} lines"}
MAPPINGS |= {list[Options]: "a list of mappings, each with options"}


def _mappings(hint: Any, value: Any, key: str) -> Any:
    """Options, or several of them."""
    if hint == list[Options] and isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return [_mappings(Options, each, key) for each in value]
    if hint == Named and isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
        return {str(name): _mappings(Options, each, key) for name, each in value.items()}
    if hint == Options and isinstance(value, dict):
        return {str(name).replace("-", "_"): each for name, each in value.items()}
    raise InputError(f"{key} is {value!r:.200}, expected {MAPPINGS[hint]}")


def _plain(hint: Any, value: Any) -> Any:
    if not isinstance(value, str | int | float) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    if hint == Count:
        return _count(value)
    if hint is bool:
        if str(value).lower() not in ("true", "false"):
            raise ValueError
        return str(value).lower() == "true"
    if hint is int:
        return _whole(value)
    made = hint(value)
    if hint is float and not math.isfinite(made):
        raise ValueError
    if hint is str and (not made.strip() or "\0" in made or not made.encode()):  # surrogates have no encoding
        raise ValueError
    return made


def _count(value: str | float) -> int:
    text = str(value).strip().lower().replace("_", "").replace(",", "")
    factor = _SUFFIXES.get(text[-1:], 1)
    number = float(text[:-1] if factor > 1 else text) * factor
    if number != int(number) or not 0 <= number <= _LARGEST:
        raise ValueError
    return int(number)


def _whole(value: str | float) -> int:
    if isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("+-").isdecimal()):
        whole = int(value)  # to the last digit, as a float would not be
    elif float(value) == int(float(value)):
        whole = int(float(value))
    else:
        raise ValueError
    if abs(whole) > 2**63:
        raise ValueError
    return whole


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; keys may be written with - or _.

    Raises:
        InputError: no such file, it is no YAML mapping, or a key is in it twice.
    """
    if path.is_dir():
        inside = path / "config.yaml"
        remedy = f"did you mean {inside}?" if inside.is_file() else "name the YAML file"
        raise InputError(f"config {path} is a folder: {remedy}")
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Once) or {}
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"config {path} is no YAML: {on_one_line(error)}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} holds {type(loaded).__name__}, expected lines of the form key: value")
    found: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name in found:
            raise InputError(f"config {path} has {name} twice, with - and with _: keep one")
        found[name] = value
    return found


class _Once(yaml.SafeLoader):
    """Safe YAML in which no key is twice: YAML itself would let the last one win without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice, keep one", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def to_dict(config: Configuration) -> dict[str, Any]:
    """Plain, JSON-able values of every field."""
    return config.model_dump(mode="json")
