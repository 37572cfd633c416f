"""What a run's files say of the machine it was made on: local paths, and what stands for them once it is shared."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any


def is_path(text: str) -> bool:
    """Whether a name can only be a path of one machine: absolute, of a home folder, or out of the current folder."""
    return text.startswith(("/", "~/", "./", "../")) or PureWindowsPath(text).is_absolute()


def strings_in(value: Any) -> Iterable[str]:
    """Every text in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from strings_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings_in(each)


def stand_in(path: str) -> str:
    """What is written for a path: its last part, still no hub's name."""
    return f"./{PurePath(path.replace(chr(92), '/')).name}"


class Names:
    """Paths and what is written for each.

    Args:
        told: path -> what stands for it; those that are found go to their last part.
        folder: of the run, written "." wherever it stands.
    """

    def __init__(self, told: Mapping[str, str], found: Iterable[str], folder: Path):
        given = {**{path: stand_in(path) for path in found}, **told}
        self.told = dict(given)
        for path, name in given.items():  # as it is spelt by whoever made it absolute
            for other in (str(Path(path).expanduser().absolute()), str(Path(path).expanduser().resolve())):
                self.told.setdefault(other, name)
        for own in (str(folder.absolute()), str(folder.resolve())):
            self.told.setdefault(own, stand_in(own))
        home = str(Path.home())
        self._inside = {path: name for path, name in self.told.items() if is_path(path) and len(path) > 2}
        if len(home) > 1:
            self._inside.setdefault(f"{home}/", "~/")

    def of(self, name: str) -> str:
        """What is written for the whole of a text."""
        return self.told.get(name, stand_in(name) if is_path(name) else name)

    def in_text(self, content: bytes) -> bytes:
        """A text file with each path replaced, as it is, as JSON writes it and as HTML does."""
        for path, name in sorted(self._inside.items(), key=lambda each: -len(each[0])):
            for write in (str, _as_json, html.escape):
                content = content.replace(write(path).encode(), write(name).encode())
        return content


def _as_json(text: str) -> str:
    return json.dumps(text)[1:-1]
