"""Files and folders that are whole or absent.

Nothing here is ever half there under its own name: what is being written, and a lock (saelora.locks), has a name that
begins with MARK; what is written takes its place by a rename once it is on disk.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saelora.errors import InputError

RUN = "run"  # begins the names of the locks of single runs in a folder
MARK = ".saelora-"
_FULL = "free some disk space or choose another place"
_REMEDIES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL}
_REMEDIES[errno.EFBIG] = "raise the limit on file sizes (ulimit -f), or choose another place"
_REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to")


def trouble(error: BaseException) -> str | None:
    """What the system said of a file that cannot be written, with a remedy; None where the error is another.

    Writers in other languages (safetensors, torch) put the system's words into an exception of their own.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    if number is None and re.search("inline_container|iostream error", str(error)):  # torch.save does not say why
        number = errno.ENOSPC
    if number is None:
        return None
    return f"{os.strerror(number)}; {_REMEDIES.get(number, 'choose another place')}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps ``path`` from being written while the block runs is raised as InputError."""
    try:
        yield
    except Exception as error:
        said = trouble(error)
        if said is None:
            raise
        raise InputError(f"{path} cannot be written: {said}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: it is whole or as it was before.

    Raises:
        InputError: the disk is full or not writable.
    """
    part = _part(path)
    with writing(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to write to; it becomes ``target``, in the place of what was there, once the block has ended.

    Raises:
        InputError: the disk is full or not writable.
    """
    part, old = _part(target), _part(target)
    with writing(target):
        try:
            part.mkdir(parents=True)
            yield part
            _sync(part)
            if target.exists():
                target.replace(old)
            part.replace(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """An empty folder to write to, whose files of these names are moved into ``folder`` once the block has ended.

    The last of them appears last, and an old one goes first: where it is there, all of them are, of one writing.

    Raises:
        InputError: the disk is full or not writable.
    """
    part = _part(folder / "files")
    with writing(folder):
        try:
            part.mkdir(parents=True)
            yield part
            _sync(part)
            (folder / names[-1]).unlink(missing_ok=True)
            for name in names:
                (part / name).replace(folder / name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _sync_folder(folder)


def in_use(folder: Path) -> bool:
    """Whether there is anything at this place but an empty folder, and what a killed run left half-written.

    Raises:
        InputError: it cannot be looked into.
    """
    try:
        if not folder.exists():
            return False
        return not folder.is_dir() or bool(left_in(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; choose another place") from error


def left_in(folder: Path) -> list[Path]:
    """What is in a folder, half-written files and locks aside."""
    return [path for path in folder.iterdir() if not path.name.startswith(MARK)]


def clear(folder: Path, first: Sequence[str], last: str) -> None:
    """Delete what is in a folder, its lock aside: marks of a finished run first, what marks it as ours at the end.

    Killed on the way, it leaves an unfinished run, never a finished one that lacks something.
    """
    with writing(folder):
        paths = {path.name: path for path in left_in(folder)}
        order = [name for name in first if name in paths]
        order += [name for name in paths if name not in first and name != last]
        for name in [*order, *([last] if last in paths else [])]:
            if paths[name].is_dir() and not paths[name].is_symlink():
                shutil.rmtree(paths[name])
            else:
                paths[name].unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what runs that were killed left: half-written files, and locks of single runs that nobody holds.

    Only for who holds the folder's own lock alone.
    """
    for path in sorted([*folder.rglob(f"{MARK}part-*"), *folder.rglob(f"{MARK}{RUN}-*")]):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f"{MARK}part-{uuid.uuid4().hex[:12]}")


def _sync(folder: Path) -> None:
    """Everything below a folder is on disk, its files with the permissions that new files have.

    safetensors 0.8 lets nobody but the owner read what it writes.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            path.chmod(0o666 & ~mask)
        _sync_path(path)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system has this for folders
        _sync_path(folder)


def _sync_path(path: Any) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
