"""Recipes of several runs: a YAML file and --set -> a checked model; ids of runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from saelora.config import (
    MAPPINGS,
    Configuration,
    Named,
    Options,
    build,
    check_keys,
    coerce,
    hints_of,
    option,
    read_yaml,
    to_dict,
)
from saelora.errors import InputError
from saelora.jobs.run import NOT_COMPARED


class Spec(Configuration):
    """A part of a recipe; a message about one of its keys says where that stands."""

    @classmethod
    def label(cls, key: str, source: str) -> str:
        return f"{key} of {source}"


class Recipe(Spec):
    """What every recipe has. ``over``: keys whose options win over base.  ``example``: of --set, for messages."""

    over: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    title: str = option("", "of the table and its figures; default: the file's name")
    base: Options = option({}, "options of every run")


R = TypeVar("R", bound=Recipe)


def read(kind: type[R], path: Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe; options are checked against their jobs' where the runs are made of them.

    Args:
        overrides: KEY=VALUE with the value in YAML: a key of the recipe, or an option, which then holds for every run
            whatever the recipe says; or WHERE.KEY=VALUE for one that stands under WHERE: base, grid, methods.NAME.

    Raises:
        InputError: the file, a key of it or an override cannot be used.
    """
    hints = hints_of(kind)
    written = {key: value for key, value in read_yaml(path).items() if value not in (None, "")}
    check_keys(written, hints, path)
    values = {"title": path.stem, **written}
    for key in (key for key, hint in hints.items() if hint in MAPPINGS):
        values[key] = coerce(hints[key], values.get(key, kind.model_fields[key].default), kind.label(key, str(path)))
    for text in overrides:
        _override(text, values, kind)
    return build(kind, values, str(path))


def _override(text: str, values: dict[str, Any], kind: type[Recipe]) -> None:
    written, equals, shown = text.partition("=")
    where, _, key = written.strip().rpartition(".")
    section, _, name = where.partition(".")
    hints, key = hints_of(kind), key.replace("-", "_")
    if not equals or (where and hints.get(section) != (Named if name else Options)):
        raise InputError(f"--set {text!r}: expected KEY=VALUE, such as {kind.example}")
    try:
        value = yaml.safe_load(shown)
    except yaml.YAMLError:
        raise InputError(f"--set {text!r}: {shown!r} is no YAML value") from None
    if name and name not in values[section]:
        known = ", ".join(values[section]) or "none"
        raise InputError(f"--set {text!r}: there is no {name!r} under {section}, but {known}")
    if where:
        target = values[section][name] if name else values[section]
    else:
        target = values if key in hints else values["base"]
        value = coerce(hints[key], value, f"--set {key}") if hints.get(key) in MAPPINGS else value
        for each, hint in ((values[over], hints[over]) for over in kind.over):
            for options in each.values() if hint == Named else each if isinstance(each, list) else [each]:
                options.pop(key, None)
    target.pop(key, None)  # what is set comes last
    target[key] = value


# options that came later, and what says nothing: left out then, so that older folders go on under the names they have
_LATER: dict[str, Any] = {
    "transcoders": [],
    "transcoder_layers": "all",
    "replacement_mode": "cascading",
    "add_error": False,
}


def compared(config: Configuration) -> dict[str, Any]:
    """All options that bear on a run's result."""
    values = to_dict(config)
    later = {key for key, nothing in _LATER.items() if values.get(key) == nothing}
    return {key: value for key, value in values.items() if key not in {*NOT_COMPARED, *later}}


def digest(values: Mapping[str, Any]) -> str:
    """12 hex digits over plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
