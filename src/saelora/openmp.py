"""How threads wait for each other: asleep, so that a program beside this one costs its share of the machine, no more.

Between two parallel pieces of work OpenMP's threads spin. Where another program holds a core, the thread that would do
the work waits for that core while the others burn theirs, and a run slows down many times over. What is computed is the
same either way.
"""

import os
import sys

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # of every OpenMP, and of GNU's, which torch brings


def wait_asleep() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user has said how they wait.

    Read when OpenMP starts: without effect, and not tried, once torch is imported.
    """
    if "torch" not in sys.modules and not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)
