"""Files, folders and sets of files are whole or absent."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saelora.files import (
    MARK,
    clear,
    in_use,
    remove_leftovers,
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
