"""Work for the engine's thread that is no continuation: it has the loaded run for itself while it lasts."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from saelora.use.run import LoadedRun


class Late(Exception):
    """A call's deadline had passed before its turn came."""


@dataclass(frozen=True)
class Call:
    """A function of the loaded run, and the future that gets its result.

    Args:
        deadline: of ``time.monotonic``, for its turn to come.
    """

    work: Callable[[LoadedRun], Any]
    deadline: float
    done: "Future[Any]" = field(default_factory=Future)

    def cancel(self) -> None:
        """Leave it undone, where it has not begun."""
        self.done.cancel()

    def run(self, run: LoadedRun, now: float) -> None:
        """Do it, and hand over what comes of it; an error too."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            if now > self.deadline:
                raise Late
            self.done.set_result(self.work(run))
        except Exception as error:
            self.done.set_exception(error)
