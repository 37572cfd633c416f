"""What recipes of several runs share: checked mappings, KEY=VALUE from the command line, ids of runs."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from saelora.config import Configuration, to_dict
from saelora.errors import InputError
from saelora.jobs.run import NOT_COMPARED


def check_keys(loaded: Iterable[str], known: tuple[str, ...], source: Path | str) -> None:
    """Every key is a known one.

    Raises:
        InputError: it is not; the nearest known one is named.
    """
    for key in loaded:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise InputError(f"unknown key {key!r} in {source}; {hint}")


def options(loaded: Mapping[str, Any], key: str, source: Path | str) -> dict[str, Any]:
    """The mapping of options under a key; nothing there is an empty one.

    Raises:
        InputError: something else is there.
    """
    value = loaded.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{key} of {source} is {type(value).__name__}, expected option: value lines")
    return with_underscores(value)


def with_underscores(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Options may be written with - or _."""
    return {str(key).replace("-", "_"): value for key, value in mapping.items()}


def override(text: str, example: str) -> tuple[str, str, Any]:
    """KEY=VALUE or WHERE.KEY=VALUE as (where, key, the value read as YAML); where is "" without one.

    Raises:
        InputError: it is written otherwise; the message shows the example.
    """
    written, equals, value = text.partition("=")
    where, _, key = written.strip().rpartition(".")
    if not equals:
        raise InputError(f"--set {text!r}: expected KEY=VALUE, such as {example}")
    try:
        return where, key.replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text!r}: {value!r} is no YAML value") from None


def compared(config: Configuration) -> dict[str, Any]:
    """All options that bear on a run's result."""
    return {key: value for key, value in to_dict(config).items() if key not in NOT_COMPARED}


def digest(values: Mapping[str, Any]) -> str:
    """12 hex digits over plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
