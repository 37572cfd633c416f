"""A command in a process of its own: its output and exit code in files, asked to stop where its parent is."""

import _thread
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from saelora.jobs.launch.worker import run_command


def test_output_is_appended_to_the_log_and_the_exit_code_written(tmp_path: Path) -> None:
    log, code = tmp_path / "a.log", tmp_path / "a.code"
    log.write_text("before\n")
    assert run_command(["sweep", "nowhere.yaml", "--out", "o"], str(Path.cwd()), str(log), str(code), {}) == 2
    first, shown, process, last = log.read_text().splitlines()
    assert (first, shown) == ("before", "$ saelora sweep nowhere.yaml --out o")
    assert process.startswith("process ")
    assert last.startswith("saelora: config nowhere.yaml cannot be read")
    assert code.read_text() == "2"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests' shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_command_is_stopped_where_its_parent_is_interrupted_and_says_so(tmp_path: Path, interruptible: None) -> None:
    """As Ray cancels: a flag of the interpreter, which ends no call of the system's."""
    log, code = tmp_path / "a.log", tmp_path / "a.code"
    code.write_text("0")  # of the same job, before it was requeued
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        # a command that would go on for minutes: --help ends in the fifth of a second that it takes to look
        run_command(["demo", "--out", str(tmp_path / "out")], str(Path.cwd()), str(log), str(code), {})
    assert int(code.read_text()) < 0
