"""Several texts as they are made: side by side where the terminal is wide enough, else one below the other."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

LEAST_WIDTH = 34  # columns of the terminal for each text


def printable(text: str) -> str:
    """Text without control characters: a model's words are not to move a terminal's cursor."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


class Screen:
    """Texts by name, written to stdout piece by piece."""

    def __init__(self, names: Sequence[str]):
        self.console = Console(file=sys.stdout, highlight=False)
        self.texts = dict.fromkeys(names, "")
        wide = self.console.width >= LEAST_WIDTH * len(names)
        self._live: Live | None = None
        if len(names) > 1 and self.console.is_terminal and wide:
            self._live = Live(console=self.console, refresh_per_second=8, vertical_overflow="visible")

    def open(self) -> AbstractContextManager[Any]:
        """What is to be open while texts are made."""
        return nullcontext() if self._live is None else self._live

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """The text of this name is being made."""
        if self._live is None:
            print(f"{name}:" if len(self.texts) > 1 else "", end="\n" if len(self.texts) > 1 else "", flush=True)
        yield
        if self._live is None:
            print(flush=True)

    def add(self, name: str, piece: str) -> None:
        """One more piece of a text."""
        self.texts[name] += piece
        if self._live is None:
            print(printable(piece), end="", flush=True)
            return
        table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
        for each in self.texts:
            table.add_column(each, ratio=1, overflow="fold")
        table.add_row(*(Text(printable(text)) for text in self.texts.values()))
        self._live.update(table)
