"""Texts that a user gives for steering, as lines of JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelora.errors import InputError
from saelora.evals.steering.texts import order

SETS = ("tuning", "test")


@dataclass(frozen=True)
class UserText:
    """One text, the set it belongs to, and the latent it is for (None: every latent)."""

    text: str
    set: str
    latent: int | None = None


def read_user_texts(path: Path) -> list[UserText]:
    """Lines of the form {"text": ..., "set": "tuning" or "test", "latent": ...}; set and latent may be left out.

    Texts without a set are divided 1 : 2 into tuning and test by a hash of the text. Blank lines are passed over, and
    so is a text that is there already.

    Raises:
        InputError: the file cannot be read, a line is no such object (with its number), or a text is in both sets.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}; expected lines such as {_EXAMPLE}") from None
    found: dict[tuple[str, int | None], UserText] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        given = _parsed(line, f"{path} line {number}")
        before = found.setdefault((given.text, given.latent), given)
        if before.set != given.set:
            raise InputError(f"{path} line {number}: this text is for {before.set} too; a text belongs to one set only")
    if not found:
        raise InputError(f"{path} holds no texts: expected lines such as {_EXAMPLE}")
    return list(found.values())


_EXAMPLE = '{"text": "The treaty was signed."}'


def _parsed(line: str, where: str) -> UserText:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is no JSON: expected an object such as {_EXAMPLE}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} holds {type(row).__name__}: expected an object such as {_EXAMPLE}")
    text, chosen, latent = row.get("text"), row.get("set"), row.get("latent")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{where} has no text: expected a string that is not empty under "text"')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: the text holds half a surrogate pair, which is no character: remove it")
    if chosen is not None and chosen not in SETS:
        raise InputError(f'{where}: "set" is {str(chosen)[:40]!r}, expected tuning or test (or leave it out)')
    if latent is not None and (not isinstance(latent, int) or isinstance(latent, bool) or latent < 0):
        raise InputError(
            f'{where}: "latent" is {str(latent)[:40]!r}, expected the number of a latent (or leave it out)'
        )
    if chosen is None:
        chosen = SETS[order(text)[0] % 3 > 0]
    return UserText(text, chosen, latent)
