"""Steering: what is done to latents while a model runs, written as on the command line or as objects.

a is a latent's activation, as ``LoadedRun.latents`` shows it, at one position:

    Add(4.0)    "+4", "-4"    a + 4, in units of a; a latent that did not fire gets 4
    Scale(2.0)  "x2"          2 a; one that did not fire stays at 0
    Clamp(0.0)  "0"           0 whatever it was: any number without a sign; 0 takes the latent out
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, parse_hookpoint

if TYPE_CHECKING:  # a command looks at its --steer before it imports torch
    from torch import Tensor


@dataclass(frozen=True)
class Add:
    """a + amount."""

    amount: float

    def __call__(self, a: Tensor) -> Tensor:
        return a + self.amount

    def __str__(self) -> str:
        return f"{self.amount:+g}"


@dataclass(frozen=True)
class Scale:
    """factor * a."""

    factor: float

    def __call__(self, a: Tensor) -> Tensor:
        return a * self.factor

    def __str__(self) -> str:
        return f"x{self.factor:g}"


@dataclass(frozen=True)
class Clamp:
    """value, whatever a is."""

    value: float

    def __call__(self, a: Tensor) -> Tensor:
        return a.new_full((), self.value).expand_as(a)

    def __str__(self) -> str:
        return f"{self.value:g}"


Edit = Add | Scale | Clamp
LARGEST = 1e30  # of an edit: float32 and bfloat16 have no more than 3e38
Place = tuple[Hookpoint, int]
Steering = dict[Place, Edit]
Change = Callable[[Hookpoint, "Tensor"], "Tensor"]  # latents [batch, seq, d_sae] of a hookpoint, changed
_NUMBER = r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
_EXPECTED = "expected +4 or -4 (add), x2 (scale) or 0 (set to that)"


def read_edit(given: Any, latent: object) -> Edit:
    """What is to be done to a latent, from an edit, its text, or a number that it is set to.

    Raises:
        InputError: it is none of these, or no finite number.
    """
    if isinstance(given, Add | Scale | Clamp):
        (number,) = vars(given).values()
        edit: Edit | None = given if isinstance(number, int | float) else None
    elif isinstance(given, int | float) and not isinstance(given, bool):
        if given < 0:
            raise InputError(
                f"steering of latent {latent} is the number {given}: say '{given}' (text) or Add({given}) to add it, "
                f"or Clamp({given}) to set the latent to it"
            )
        edit = Clamp(float(given))
    else:
        edit = _from_text(str(given).strip())
    if edit is None or not abs(next(iter(vars(edit).values()))) <= LARGEST:
        raise InputError(f"steering of latent {latent} is {str(given)[:80]!r}, {_EXPECTED}")
    return edit


def _from_text(text: str) -> Edit | None:
    if found := re.fullmatch(rf"x([+-]?(?:{_NUMBER}))", text):
        return Scale(float(found[1]))
    if re.fullmatch(rf"[+-](?:{_NUMBER})", text):
        return Add(float(text))
    return Clamp(float(text)) if re.fullmatch(_NUMBER, text) else None


def from_flags(texts: Iterable[str]) -> dict[str, str]:
    """``latent=edit`` of the command line, a latent perhaps with its hookpoint before a colon.

    Raises:
        InputError: a text of another form, or a latent twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        latent, equals, edit = text.partition("=")
        if not equals or not latent.strip():
            raise InputError(f"steer is {text[:80]!r}, expected LATENT=EDIT such as 3740=+4, 12=0, 7=x2")
        if latent.strip() in found:
            raise InputError(f"steer names latent {latent.strip()} twice: give it once")
        found[latent.strip()] = edit
    return found


def resolve(given: Mapping[Any, Any], sizes: Mapping[Hookpoint, int]) -> Steering:
    """Which latents are steered, and how.

    Args:
        given: latent -> edit. A latent is a number, or where there are several SAEs (hookpoint, number) or
            "hookpoint:number".
        sizes: hookpoint -> number of latents.

    Raises:
        InputError: a latent that no SAE has, or an edit that is none.
    """
    found: Steering = {}
    for key, edit in given.items():
        place = _place(key, sizes)
        if place in found:
            raise InputError(f"latent {key} is steered twice: give it once")
        found[place] = read_edit(edit, key)
    return found


def _place(key: Any, sizes: Mapping[Hookpoint, int]) -> Place:
    where, latent = key if isinstance(key, tuple) and len(key) == 2 else (None, key)
    if isinstance(latent, str) and where is None and ":" in latent:
        where, _, latent = latent.rpartition(":")
    if isinstance(latent, bool) or not re.fullmatch(r"\d{1,12}", str(latent).strip()):
        first, n = next(iter(sizes.items()))
        expected = f"0 to {n - 1:,}" if len(sizes) == 1 else f"one after its hookpoint and a colon, as in {first}:3"
        raise InputError(f"latent {str(key)[:80]!r} is no number: expected {expected}")
    hookpoint = _hookpoint(where, sizes, key)
    if int(latent) >= sizes[hookpoint]:
        raise InputError(
            f"latent {int(latent):,} is not there: the SAE at {hookpoint} has latents 0 to {sizes[hookpoint] - 1:,}"
        )
    return hookpoint, int(latent)


def _hookpoint(where: Any, sizes: Mapping[Hookpoint, int], key: Any) -> Hookpoint:
    names = ", ".join(map(str, sizes))
    if where is None:
        if len(sizes) > 1:
            example = f"{next(iter(sizes))}:{key}"
            raise InputError(f"latent {key} could be of {len(sizes)} SAEs ({names}): say which, as in {example}")
        return next(iter(sizes))
    hookpoint = where if isinstance(where, Hookpoint) else parse_hookpoint(str(where))
    if hookpoint not in sizes:
        raise InputError(f"there is no SAE at {hookpoint}: expected {names}")
    return hookpoint


def edit_of(stack: Sequence[Steering | Change]) -> Change:
    """What a splice does to its latents [batch, seq, d_sae]; the steerings act one after the other."""

    def edit(hookpoint: Hookpoint, latents: Tensor) -> Tensor:
        changed = latents.clone()
        for steering in stack:
            if not isinstance(steering, dict):
                changed = steering(hookpoint, changed)
                continue
            for (where, latent), how in steering.items():
                if where == hookpoint:
                    changed[..., latent] = how(changed[..., latent])
        return changed

    return edit
