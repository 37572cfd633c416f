"""Files, folders and sets of files are whole or absent; a folder has one writer."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saelora.errors import InputError
from saelora.files import (
    MARK,
    clear,
    in_use,
    locked,
    remove_leftovers,
    scratch_folder,
    tidy,
    trouble,
    whole_files,
    whole_folder,
    write_whole,
)


def killed_at_each_operation(work: Callable[[], None], look: Callable[[], None]) -> int:
    """``work`` in forks that end without a word before their 1st, 2nd, ... operation on files; ``look`` after each."""
    operations = 0
    while True:
        operations += 1
        child = os.fork()
        if child == 0:
            _die_before(operations)
            work()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        look()
        if status == 0:
            return operations - 1


def _die_before(operation: int) -> None:
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        seen += 1
        if seen == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_file_is_as_it_was_or_new_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(b"old")
    seen = set()
    n = killed_at_each_operation(lambda: write_whole(file, b"new" * 1000), lambda: seen.add(file.read_bytes()))
    assert n >= 2
    assert seen == {b"old", b"new" * 1000}


def test_a_folder_is_as_it_was_new_or_absent(tmp_path: Path) -> None:
    folder = tmp_path / "f"

    def write() -> None:
        with whole_folder(folder) as part:
            (part / "a").write_text("new")
            (part / "b").write_text("new")

    def look() -> None:
        seen.add(tuple(path.read_text() for path in sorted(folder.glob("*"))))

    seen: set[tuple[str, ...]] = set()
    killed_at_each_operation(write, look)
    assert seen == {(), ("new", "new")}


def test_the_last_file_of_a_set_stands_for_all_of_one_writing(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with whole_files(tmp_path, ("weights", "config")) as part:
            for name in ("weights", "config"):
                (part / name).write_text(text)

    write("old")
    seen = set()

    def look() -> None:
        config = tmp_path / "config"
        seen.add((config.read_text(), (tmp_path / "weights").read_text()) if config.exists() else None)

    killed_at_each_operation(lambda: write("new"), look)
    assert seen == {("old", "old"), None, ("new", "new")}


def test_files_of_a_set_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    with whole_files(tmp_path, ("weights",)) as part:
        (part / "weights").touch(mode=0o600)
    (tmp_path / "new").touch()
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_what_a_killed_writer_left_is_no_use_of_a_folder_and_can_be_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "below").mkdir(parents=True)
    (out / f"{MARK}part-1").mkdir()
    (out / f"{MARK}part-1" / "x").write_text("half")
    (out / f"{MARK}lock").write_text("")
    assert in_use(out)  # "below" is somebody's
    (out / "below").rmdir()
    assert not in_use(out)
    remove_leftovers(out)
    assert [path.name for path in out.iterdir()] == [f"{MARK}lock"]


def test_a_folder_that_is_being_emptied_is_never_a_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill() -> None:
        out.mkdir(exist_ok=True)
        for name in ("a.safetensors", "config.yaml", "results.json"):
            (out / name).write_text("x")

    def look() -> None:
        there = {path.name for path in out.iterdir()}
        assert there in ({"a.safetensors", "config.yaml", "results.json"}, {"a.safetensors", "config.yaml"}) or (
            there in ({"config.yaml"}, set())
        )
        fill()

    fill()
    assert killed_at_each_operation(lambda: clear(out, ["results.json"], "config.yaml"), look) == 3


HOLD = "import sys; from pathlib import Path; from saelora.files import locked\n"
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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "free some disk space"),
        (OSError(errno.EROFS, "x"), "a folder that you may write to"),
        (PermissionError(errno.EACCES, "x"), "a folder that you may write to"),
        (OSError(errno.EFBIG, "x"), "ulimit -f"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "free some disk"),
        (ValueError("os error"), None),
    ],
)
def test_the_remedy_is_that_of_the_trouble(error: Exception, words: str | None) -> None:
    said = trouble(error)
    assert said is None if words is None else words in str(said)


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
    monkeypatch.setattr("saelora.files.fcntl", None)
    with scratch_folder(tmp_path) as folder:
        (folder / "big").touch()
        assert len(list(tmp_path.glob("*/big"))) == 2
    assert len(list(tmp_path.glob("*/big"))) == 1


def test_scratch_folder_that_cannot_be_made_is_the_systems_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), scratch_folder(tmp_path / "file"):
        pass
