"""While others need the cores, a command holds a second team of OpenMP's threads, unless told otherwise."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from saelora.openmp import VARIABLES, crowded

SHOW = "from saelora import openmp; print(len(openmp.WATCHING))"
COMMAND = """
import saelora.cli, time
def shows(config): SHOW
saelora.cli._main = shows
saelora.cli.main(['report', 'nowhere'])
""".replace("SHOW", SHOW)
BESIDE_A_BUSY_LOOP = """
import os, threading, time
import torch
from saelora.openmp import Watch
n_threads = lambda: len(os.listdir('/proc/self/task'))
torch.ones(2**20).sum()  # the first team
watch, before = Watch(pause=0.01), n_threads()
watch.start()
deadline = time.monotonic() + 60
while not (watch.holds and n_threads() >= before + 3) and time.monotonic() < deadline:
    time.sleep(0.01)
held = watch.holds, n_threads() - before
watch.end()
watch.join()
print(*held, watch.holds, [t.name for t in threading.enumerate() if t.name in ('watch', 'team')])
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what runs as Linux has it")


@pytest.fixture
def busy() -> Iterator[None]:
    """A program for every core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def shown(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@linux
def test_beside_other_programs_a_second_team_of_threads_is_held_and_let_go(busy: None) -> None:
    # the watch, the team's first thread and its second
    assert shown(BESIDE_A_BUSY_LOOP, OMP_NUM_THREADS="2") == "True 3 False []"


@linux
def test_a_command_watches() -> None:
    assert shown(COMMAND) == "1"


@linux
def test_no_watch_outlives_its_command() -> None:
    three = "from saelora.cli import main\nfor _ in range(3): main(['report', 'nowhere'])"
    assert shown(f"{three}\nimport time; time.sleep(1)\n{SHOW}") == "0"


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "1000"}])
def test_what_the_user_has_set_is_left_alone(given: dict[str, str]) -> None:
    assert shown(COMMAND, **given) == "0"


def test_importing_the_package_watches_nothing() -> None:
    assert shown(f"import saelora, saelora.cli\n{SHOW}") == "0"


@pytest.mark.parametrize(
    ("beside", "threads", "cores", "expected"),
    [(0, 2, 2, False), (1, 2, 2, True), (1, 1, 2, False), (3, 32, 64, False), (33, 32, 64, True), (0.5, 2, 2, False)],
)
def test_it_is_crowded_where_threads_and_other_programs_are_more_than_the_cores(
    beside: float, threads: int, cores: int, expected: bool
) -> None:
    assert crowded(beside, threads, cores) is expected
