"""What a person sees while a job runs: progress on a terminal, plain lines elsewhere, nothing with --quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 60.0  # between progress lines where there is no terminal: a log wants a sign of life, not a film


class Console:
    """Writes to stderr, so that stdout holds results alone."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.rich = RichConsole(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line, as it is: nothing in it is read as markup."""
        self.rich.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "tokens") -> Iterator["Bar"]:
        """A bar with rate and time left; at most a line every PLAIN_SECONDS where output is no terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield Bar(self, label, total, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.rich, transient=False) as bars:
            yield Bar(self, label, total, unit, bars, bars.add_task(label, total=total, note="", rate=""))


class Bar:
    """Progress of one piece of work, counted in ``unit``."""

    def __init__(
        self, console: Console, label: str, total: int, unit: str, bars: Progress | None = None, task: Any = None
    ):
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.bars, self.task = bars, task
        self.done, self.note = 0, ""
        self.first = 0  # what a resumed run had done before is not counted into the rate
        self.started = self.said = time.monotonic()

    def start_at(self, done: int) -> None:
        """Go on from what a resumed run had done before."""
        self.first = done
        self.update(done)

    def advance(self, amount: int, note: str | None = None) -> None:
        self.update(self.done + amount, note)

    def update(self, done: int, note: str | None = None) -> None:
        now = time.monotonic()
        self.done, self.note = done, self.note if note is None else note
        if done == self.first:
            self.started = now  # what came before the work itself (a first evaluation) is no part of its rate
        rate = (done - self.first) / max(now - self.started, 1e-9)
        shown = f"{rate:,.0f} {self.unit}/s"
        if self.bars is not None:
            self.bars.update(TaskID(self.task), completed=done, note=self.note, rate=shown)
        elif now - self.said >= PLAIN_SECONDS or (done >= self.total and self.said > self.started):
            self.said = now
            speed = f", {shown}, {(self.total - done) / rate:.0f} s left" if rate > 0 else ""
            note = f"  {self.note}" if self.note else ""
            self.console.say(f"{self.label}: {done:,} of {self.total:,} {self.unit}{speed}{note}")
