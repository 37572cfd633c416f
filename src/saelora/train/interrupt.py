"""Ctrl-C and SIGTERM as a request that the loop reads between steps."""

import signal
import threading
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run was asked to stop, finished its step, and saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"interrupted at step {step}")
        self.signum, self.step = signum, step
        self.exit_code = 128 + signum

    def with_advice(self, text: str) -> "Interrupted":
        """The same stop, saying how to go on."""
        self.args = (text,)
        return self


class StopRequest:
    """While open, the first SIGINT or SIGTERM only sets ``signum``; a second one acts as it usually does."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # handlers can be set nowhere else
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._before.clear()
