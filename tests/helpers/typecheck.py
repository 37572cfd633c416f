"""beartype as the tests use it: an int will do for a float, as type checkers have it, any open file for IO[bytes]."""

import typing
from collections.abc import Callable
from typing import IO, Any

import beartype as bt
import jaxtyping
from beartype import BeartypeConf, beartype

# it wants subclasses of typing.IO, which neither BytesIO nor a gzip or zstandard reader is
_overrides = bt.FrozenDict if hasattr(bt, "FrozenDict") else bt.BeartypeHintOverrides  # its older name
_FILES = _overrides({IO[bytes]: Any})
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_FILES))


def install(packages: list[str]) -> None:
    """Check what these packages' functions get and return, where they say a shape; to be called before any is imported.

    jaxtyping's own hook checks the others too, which mypy has read already: three calls in four, a quarter of all time.
    """
    jaxtyped = jaxtyping.jaxtyped

    def where_shapes_are_said(*args: Any, **options: Any) -> Any:
        decorate: Callable[[Any], Any] = jaxtyped(*args, **options)
        return decorate if args else lambda made: decorate(made) if _says_a_shape(made) else made

    jaxtyping.jaxtyped = where_shapes_are_said
    jaxtyping.install_import_hook(packages, "typecheck.check")


def _says_a_shape(made: Any) -> bool:
    function = getattr(made, "__func__", made)
    return any(_holds_a_shape(hint) for hint in getattr(function, "__annotations__", {"": ""}).values())


def _holds_a_shape(hint: Any) -> bool:
    if isinstance(hint, str | typing.ForwardRef):
        return True  # perhaps
    if isinstance(hint, list):
        return any(map(_holds_a_shape, hint))
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_holds_a_shape, typing.get_args(hint)))
