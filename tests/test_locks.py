"""A folder has one writer, and what killed processes left goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saelora.errors import InputError
from saelora.files import MARK
from saelora.locks import locked, scratch_folder, tidy

HOLD = "import sys; from pathlib import Path; from saelora.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1]), shared=len(sys.argv) > 2): print('held', flush=True); sys.stdin.read()"


def holder(folder: Path, *words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_in_one_line_that_names_the_first_until_it_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(InputError, match=str(first.pid)) as caught, locked(tmp_path):
            pass
        assert "\n" not in str(caught.value)
        first.kill()
        first.wait()
        with locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())  # nor is the lock left behind


def test_sharers_keep_out_who_does_not_share(tmp_path: Path) -> None:
    with holder(tmp_path, "shared") as first:
        with locked(tmp_path, shared=True):
            pass
        with pytest.raises(InputError, match="another saelora process"), locked(tmp_path):
            pass
        first.kill()


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        told = []

        def wait(who: str) -> None:
            told.append(who)
            first.kill()

        started = time.monotonic()
        with locked(tmp_path, wait=wait):
            pass
        assert told[0].startswith(f"{first.pid} on ")
        assert time.monotonic() - started < 60


def test_leftovers_go_where_nobody_is_writing_and_stay_where_somebody_is(tmp_path: Path) -> None:
    (tmp_path / f"{MARK}part-1").write_text("half")
    with locked(tmp_path, shared=True):
        tidy(tmp_path)
        assert (tmp_path / f"{MARK}part-1").exists()
    tidy(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / f"{MARK}lock").write_text("a process that was killed")
    tidy(tmp_path)
    assert not list(tmp_path.iterdir())


def in_scratch(parent: Path, *, killed: bool) -> int:
    """The id of a forked process that writes to a scratch folder, and then is killed, or sleeps there."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with scratch_folder(parent) as folder:
            (folder / "big").write_bytes(b"x")
            os.write(tell, b"1")
            os.kill(os.getpid(), signal.SIGKILL if killed else signal.SIGSTOP)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(tell)
    if killed:
        os.waitpid(child, 0)
    return child


def test_scratch_folders_of_killed_processes_go_and_of_living_ones_stay(tmp_path: Path) -> None:
    living = in_scratch(tmp_path, killed=False)
    try:
        (own,) = tmp_path.glob("*/big")
        in_scratch(tmp_path, killed=True)
        assert len(list(tmp_path.glob("*/big"))) == 2
        with scratch_folder(tmp_path) as folder:
            assert list(tmp_path.glob("*/big")) == [own]
            (folder / "big").touch()
    finally:
        os.kill(living, signal.SIGKILL)
        os.waitpid(living, 0)
    with scratch_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_scratch_folders_are_left_alone_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_scratch(tmp_path, killed=True)
    monkeypatch.setattr("saelora.locks.fcntl", None)
    with scratch_folder(tmp_path) as folder:
        (folder / "big").touch()
        assert len(list(tmp_path.glob("*/big"))) == 2
    assert len(list(tmp_path.glob("*/big"))) == 1


def test_scratch_folder_that_cannot_be_made_is_the_systems_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), scratch_folder(tmp_path / "file"):
        pass
