"""The census of latents, made in the background on first demand and then kept."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from saelora.console import Console
from saelora.errors import InputError, on_one_line
from saelora.use.census import Census, cache_file, count, held_out_rows, load, save
from saelora.use.census_told import keep_in_short
from saelora.use.serving.engine import Engine

State = Literal["not begun", "reading", "counting", "ready", "failed"]


@dataclass
class Counting:
    """How far it is, and in the end the census.

    Args:
        n_tokens: of held-out text to read, about.
    """

    engine: Engine
    n_tokens: int
    state: State = "not begun"
    done: int = 0
    total: int = 0
    why: str = ""
    census: Census | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Begin, where that was not done yet."""
        with self._lock:
            if self.state == "not begun":
                self.state = "reading"
                threading.Thread(target=self._read, name="saelora-latents", daemon=True).start()

    def told(self) -> dict[str, Any]:
        """Progress, for the page."""
        return {"state": self.state, "done": self.done, "total": self.total, "why": self.why}

    def _read(self) -> None:
        try:
            rows = held_out_rows(self.engine.run, self.n_tokens)
            kept = load(self.engine.run, cache_file(self.engine.run, rows))
        except Exception as error:
            self._failed(error)
            return
        if kept is not None:
            self.census, self.state = kept, "ready"
            self.engine.when_idle(self._in_short(rows))
            return
        self.total, self.state = len(rows), "counting"
        self.engine.when_idle(self._steps(rows))

    def _steps(self, rows: Tensor) -> Iterator[None]:
        try:
            yield from count(self.engine.run, rows, self._told)
        except Exception as error:
            self._failed(error)
            return
        yield from self._in_short(rows, anew=True)

    def _in_short(self, rows: Tensor, anew: bool = False) -> Iterator[None]:
        """Keep the census (where it is new), and what ``saelora report`` shows of it."""
        assert self.census is not None
        path = cache_file(self.engine.run, rows)
        try:
            if anew:
                save(self.census, path)
            if anew or not path.with_suffix(".json").exists():
                keep_in_short(self.census, self.engine.run, path.with_suffix(".json"))
        except InputError as error:
            self.why = f"it cannot be kept, and will be counted again next time: {on_one_line(error)}"
            Console().say(f"the count of latents: {self.why}")
        yield

    def _told(self, census: Census | None, n_rows: int) -> None:
        self.done = n_rows
        if census is not None:
            self.census, self.state = census, "ready"

    def _failed(self, error: Exception) -> None:
        self.why, self.state = on_one_line(error), "failed"
