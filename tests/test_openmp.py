"""Commands wait asleep, unless the user says otherwise; importing the package changes nothing."""

import os
import subprocess
import sys

import pytest

SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
COMMAND = "from saelora.cli import main; main(['report', 'nowhere'])"


def shown(code: str, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", f"{code}\n{SHOW}"]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_command_has_threads_wait_asleep() -> None:
    assert shown(COMMAND) == ["PASSIVE", "0"]


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
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
