"""How threads wait for each other: asleep where other programs need the cores, so that a run costs its share, no more.

Between two parallel pieces of work OpenMP's threads spin. Where another program holds a core, the thread that would do
the work waits for that core while the others burn theirs, and a run slows down three times over. On an idle machine
spinning is the faster way by about a tenth. What is computed is the same either way.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # of every OpenMP, and of GNU's, which torch brings
_LOOKS, _BETWEEN = 7, 0.01  # seconds between two looks at what runs: long enough to tell a moment's work from a program


def wait_asleep() -> None:
    """Have OpenMP's threads sleep while they wait, where the machine is busy and the user has not said how they wait.

    Read when OpenMP starts: without effect, and not tried, once torch is imported.
    """
    if "torch" not in sys.modules and not WAITING.keys() & os.environ.keys() and crowded(_beside(), _threads()):
        os.environ.update(WAITING)


def crowded(n_beside: float, n_threads: int, n_cores: int | None = None) -> bool:
    """Whether so many threads, beside so many other programs, are more than the machine has cores."""
    return n_threads > 1 and n_beside >= 1 and n_beside + n_threads > (n_cores or os.cpu_count() or 1)


def _beside() -> float:
    """How many other programs run now: of several looks the median; the last minute's load where Linux's is missing."""
    with suppress(OSError, ValueError, IndexError):
        looks = []
        for _ in range(_LOOKS):
            looks.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1)  # without this process
            time.sleep(_BETWEEN)
        return median(looks)
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return 0


def _threads() -> int:
    """How many threads OpenMP will use."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(given) if given.isdecimal() else os.cpu_count() or 1
