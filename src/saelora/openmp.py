"""How long threads that wait for each other spin: briefly while other programs need the cores, as long as usual else.

Between two parallel pieces of work OpenMP's threads spin. Where another program holds a core, the thread that would do
the work waits for that core while the others burn theirs, and a run slows down three times over. On an idle machine
spinning is the faster way by about a tenth. What is computed is the same either way.

GNU's OpenMP, which torch brings on Linux, spins 300 times shorter while a process has more threads than the machine has
cores (its documentation on GOMP_SPINCOUNT). So a second team of threads is held, asleep, for as long as others run.
"""

import _thread
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # with which users say how threads wait
_LOOKS, _BETWEEN = 7, 0.01  # seconds between two looks at what runs: long enough to tell a moment's work from a program
_PAUSE, _CALM = 2.0, 3  # seconds between two judgements; how many calm ones in a row before threads spin again


@contextmanager
def yielding_to_others() -> Iterator[None]:
    """Watch what runs beside this process while the block runs; on Linux, unless the user has said how threads wait."""
    watch = None
    if sys.platform.startswith("linux") and not set(VARIABLES) & os.environ.keys():
        watch = Watch()
        watch.begin()
    try:
        yield
    finally:
        if watch is not None:
            watch.end()


def crowded(n_beside: float, n_threads: int, n_cores: int | None = None) -> bool:
    """Whether so many threads, beside so many of other programs, are more than the machine has cores."""
    return n_beside >= 1 and n_beside + n_threads > (n_cores or os.cpu_count() or 1)


WATCHING: set["Watch"] = set()  # begun, and not yet ended


class Watch(threading.Thread):
    """Holds a second team of OpenMP's threads while the machine is crowded."""

    def __init__(self, pause: float = _PAUSE):
        super().__init__(daemon=True, name="watch")
        self._pause, self._ended, self._release = pause, threading.Event(), threading.Event()
        self._team: threading.Thread | None = None

    @property
    def holds(self) -> bool:
        """Whether threads spin briefly now."""
        return self._team is not None

    def begin(self) -> None:
        """Start, without waiting for the thread to say that it runs: where memory has ended it dies before it can."""
        WATCHING.add(self)
        with suppress(RuntimeError, MemoryError):
            _thread.start_new_thread(self._watch, ())

    def _watch(self) -> None:
        with suppress(MemoryError):  # a run that has none left says so itself
            self.run()
        WATCHING.discard(self)

    def run(self) -> None:
        calm = 0
        while not self._ended.wait(self._pause):
            if "torch" not in sys.modules:
                continue
            import torch  # waits where another thread is still importing it

            n_threads = torch.get_num_threads()
            calm = 0 if n_threads > 1 and crowded(_beside(), n_threads) else calm + 1
            if calm == 0 and not self.holds:
                self._hold()
            elif calm >= _CALM and self.holds:
                self._let_go()
        self._let_go()

    def end(self) -> None:
        """Stop watching, and let go of what is held, soon."""
        self._ended.set()

    def _hold(self) -> None:
        self._release.clear()
        self._team = threading.Thread(target=_team, args=(self._release,), daemon=True, name="team")
        self._team.start()

    def _let_go(self) -> None:
        if self._team is not None:
            self._release.set()
            self._team.join()
            self._team = None


def _team(release: threading.Event) -> None:
    """Work enough for all of OpenMP's threads, of which this one then has a team of its own until it ends."""
    import torch

    torch.ones(2**20).sum()
    release.wait()


def _beside() -> float:
    """How many threads of other programs run now: the median of several looks."""
    looks = []
    with suppress(OSError, ValueError, IndexError):  # /proc is Linux's
        for _ in range(_LOOKS):
            running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
            looks.append(running - _own())
            time.sleep(_BETWEEN)
    return median(looks) if looks else 0


def _own() -> int:
    """How many threads of this process run now."""
    states = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states.count("R")
