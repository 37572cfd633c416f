"""What files of this project's own must hold to be read: the kinds of their entries, as far as readers rely on them.

A file that was edited by hand, or is of another version, is refused in one line that names the entry.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelora.errors import InputError


@dataclass(frozen=True)
class Either:
    """Any of some shapes."""

    shapes: tuple[Any, ...]


Shape = Any  # a type, a tuple of types, [shape] of a list's items, {"key": shape} ("key?" may be absent, "*" any key)
NUMBER, MAYBE_NUMBER, MAYBE_TEXT = (int, float), (int, float, type(None)), (str, type(None))
_NAMES = {
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
_FIGURE = re.compile(r"(ce|kl|top1|loss_recovered)(_|$)|gap_closed$|n_tokens|seconds|tokens_per_second$")
_TOGETHER: list[tuple[str, ...]] = [("relative_error", "relative_error_q10", "relative_error_q90")]
_TOGETHER += [("n_massive", "n_positions", "massive_limit")]

_MODEL = {"ref": str, "fingerprint?": MAYBE_TEXT, "revision?": MAYBE_TEXT, "dtype?": str, "model_type?": str}
_SAE = {"ref": str, "hookpoint": str, "fingerprint": MAYBE_TEXT}
_ABOUT = {"model?": _MODEL, "saes?": [_SAE], "token_policy?": dict, "heldout?": {"fingerprint": str}}
_TUNED = {"hookpoint": str, "folder": str, "fingerprint": str}
_SAES = {"*": {"fvu": NUMBER, "l0": NUMBER, "dead_frac": NUMBER, "*": NUMBER}}
_SAE_FIGURES = dict.fromkeys(("relative_error?", "top_variance?", "fvu_rest?"), MAYBE_NUMBER)
_SAE_FIGURES |= dict.fromkeys(("relative_error_q10?", "relative_error_q90?"), MAYBE_NUMBER)
_CI95 = {"*": "pair"}
_HISTORY = [{"n_tokens": NUMBER, "*": MAYBE_NUMBER}]
MANIFEST: Shape = {
    "model": _MODEL,
    "saes": [_SAE],
    "config": dict,
    "token_policy?": dict,
    "method?": str,
    "adapter?": MAYBE_TEXT,
    "tuned_saes?": [_TUNED],
    "environment?": {"versions?": {"*": MAYBE_TEXT}},
    "metrics?": {"*": MAYBE_NUMBER},
}
FIGURES: Shape = {
    **dict.fromkeys(("ce_base", "n_tokens_evaluated", "n_tokens_trained"), NUMBER),
    **dict.fromkeys(("seconds_training?", "tokens_per_second?"), NUMBER),  # absent where several shared their passes
    "ci95?": _CI95,
    "saes?": _SAES,
    "saes_adapted?": _SAES,
    "history?": _HISTORY,
    "about?": _ABOUT,
    "method?": str,
    "samples?": [{"*": str}],
    "row_starts?": dict.fromkeys(("n_rows", "n_without_exempt_token", "n_positions_spared"), NUMBER),
}
POINT: Shape = {
    "id": str,
    "status": str,
    "model": str,
    "sae": [str],
    "hookpoint": [str],
    "placement": str,
    "config": dict,
    **dict.fromkeys(("rank", "lr", "seed", "n_saes", "layer", "d_sae"), NUMBER),
    **dict.fromkeys(("fvu", "l0", "dead_frac", "alpha", "adapted_layer"), MAYBE_NUMBER),
    **_SAE_FIGURES,
    "ci95": _CI95,
    "about?": _ABOUT,
}
_SPENT = dict.fromkeys(("share", "n_tokens", "seconds", "model_flops"), NUMBER) | {"ce": MAYBE_NUMBER}
RUN: Shape = {
    **dict.fromkeys(("id", "name", "kind"), str),
    "method": MAYBE_TEXT,
    **dict.fromkeys(("seed", "budget", "lr"), NUMBER),
    "curve": [_SPENT],
    "config": dict,
    "final": {
        **dict.fromkeys(("ce_base", "ce", "kl"), NUMBER),
        **dict.fromkeys(("ce_sae", "ce_clean", "top1", "gap_closed", "fvu", "l0", "dead_frac"), MAYBE_NUMBER),
        **dict.fromkeys(("jaccard", "rate_correlation"), MAYBE_NUMBER),
        **_SAE_FIGURES,
        "ci95": _CI95,
    },
    "start": Either((type(None), {"ref": str, "name?": type(None)}, {"name": str, "run": str, **_SPENT})),
    "tuning": (list, type(None)),
    "checkpoints?": [_SPENT],
    "peak_memory_bytes": MAYBE_NUMBER,
    "environment?": dict,
    "about?": _ABOUT,
}


def check_file(found: Any, shape: Shape, path: Path, remedy: str) -> Any:
    """``found`` again, what was read from ``path``.

    Raises:
        InputError: an entry is missing or of another kind; the message ends with the remedy.
    """
    wrong = _wrong(found, shape, "") or _wrong_figures(found, NUMBER if shape is FIGURES else MAYBE_NUMBER)
    if wrong:
        raise InputError(f"{path} is not as saelora writes it ({wrong}): was it edited? {remedy}")
    return found


def _wrong(value: Any, shape: Shape, where: str) -> str | None:
    """What does not fit, in words; None where all does."""
    if isinstance(shape, Either):
        wrong = [_wrong(value, each, where) for each in shape.shapes]
        return None if None in wrong else wrong[-1]
    if isinstance(shape, dict):
        return _wrong_entries(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is {kind_of(value)}, expected a list"
        return next(filter(None, (_wrong(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value))), None)
    if shape == "pair":
        if not isinstance(value, list) or len(value) != 2 or any(_wrong(each, NUMBER, "") for each in value):
            return f"{where} is {kind_of(value)}, expected a list of two numbers"
        return None
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
        return None
    return f"{where} is {kind_of(value)}, expected {names_of(kinds)}"


def _wrong_entries(value: Any, shape: Mapping[str, Shape], where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where or 'it'} is {kind_of(value)}, expected an object"
    named = {key.removesuffix("?"): below for key, below in shape.items()}
    for key in shape:
        if not key.endswith(("?", "*")) and key not in value:
            return f"{where}{'.' if where else ''}{key} is missing"
    for key, below in value.items():
        rule = named.get(key, shape.get("*"))
        if rule is not None and (wrong := _wrong(below, rule, f"{where}{'.' if where else ''}{key}")):
            return wrong
    return None


def _wrong_figures(found: Any, kind: Shape) -> str | None:
    """Figures are numbers (null where a point has diverged), and an SAE's come together."""
    if not isinstance(found, dict):
        return None
    for key, value in found.items():
        if _FIGURE.match(key) and (wrong := _wrong(value, kind, key)):
            return wrong
    if "seconds_training" in found and "tokens_per_second" not in found:
        return "seconds_training stands without tokens_per_second"
    saes = [found[key].items() for key in ("saes", "saes_adapted") if isinstance(found.get(key), dict)]
    for name, sae in (each for some in saes for each in some):
        for first, *others in _TOGETHER:
            if first in sae and not sae.keys() >= set(others):
                return f"saes.{name} has {first} without {' and '.join(others)}"
    for arm in ("sae", "adapted", "adapted_clean"):  # of zeros there may be the cross entropy alone
        there = [f"{figure}_{arm}" in found for figure in ("ce", "kl", "top1")]
        if "ce_base" in found and any(there) and not all(there):
            return f"of ce_{arm}, kl_{arm} and top1_{arm} some are missing"
    return None


def names_of(kinds: tuple[type, ...]) -> str:
    """Kinds of entries in words."""
    return " or ".join(dict.fromkeys("a number" if kind is int and float in kinds else _NAMES[kind] for kind in kinds))


def kind_of(value: Any) -> str:
    """What a value is, in words, with itself where it is short."""
    name = "true or false" if isinstance(value, bool) else _NAMES.get(type(value), type(value).__name__)
    shown = repr(value)
    return f"{name} ({shown})" if len(shown) < 40 and not isinstance(value, dict | list | type(None)) else name
