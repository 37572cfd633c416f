"""On a busy machine commands wait asleep, unless the user says otherwise; importing the package changes nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from saelora.openmp import crowded

SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
COMMAND = "from saelora.cli import main; main(['report', 'nowhere'])"


@pytest.fixture(scope="module", autouse=True)
def busy() -> Iterator[None]:
    """A program for every core, as the machine has it while these tests run."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def shown(code: str, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    command = [sys.executable, "-c", f"{code}\n{SHOW}"]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_command_on_a_busy_machine_has_threads_wait_asleep() -> None:
    assert shown(COMMAND) == ["PASSIVE", "0"]


def test_one_thread_waits_for_none() -> None:
    assert shown(COMMAND, OMP_NUM_THREADS="1") == ["None", "None"]


@pytest.mark.parametrize(
    ("beside", "threads", "cores", "expected"),
    [(0, 2, 2, False), (1, 2, 2, True), (1, 1, 2, False), (3, 32, 64, False), (33, 32, 64, True), (0.4, 2, 2, False)],
)
def test_threads_sleep_where_they_and_the_other_programs_are_more_than_the_cores(
    beside: float, threads: int, cores: int, expected: bool
) -> None:
    assert crowded(beside, threads, cores) is expected


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
        ({"GOMP_SPINCOUNT": "1000"}, ["None", "1000"]),
    ],
)
def test_what_the_user_has_set_is_kept(given: dict[str, str], kept: list[str]) -> None:
    assert shown(COMMAND, **given) == kept


def test_importing_the_package_leaves_the_environment_alone() -> None:
    assert shown("import saelora, saelora.cli") == ["None", "None"]


def test_once_torch_is_there_nothing_is_set_that_would_have_no_effect() -> None:
    assert shown(f"import torch\n{COMMAND}") == ["None", "None"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks GNU OpenMP what it read")
def test_openmp_reads_it() -> None:
    code = f"import os\nos.environ['OMP_DISPLAY_ENV'] = 'VERBOSE'\n{COMMAND}\nimport torch"
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
