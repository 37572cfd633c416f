"""The lock on a folder that a run writes to, and what processes that share a place leave to each other."""

import errno
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saelora.errors import InputError
from saelora.files import MARK, remove_leftovers, writing

try:
    import fcntl
except ImportError:  # not on Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

_SCRATCH = "scratch-"
_UNLOCKABLE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(
    folder: Path, name: str = "lock", *, shared: bool = False, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock on a folder, which is made where it is not there; a process that ends, however, lets go of it.

    Args:
        name: of the lock, where parts of a folder are locked one by one.
        shared: with others that hold it shared too; who does not is kept out.
        wait: told once who holds it, where this process is to wait for its turn; None refuses instead.

    Raises:
        InputError: another process holds it, or the folder cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(folder, folder / f"{MARK}{name}", shared, wait)
    try:
        yield
    finally:
        _unlock(file, folder / f"{MARK}{name}")


def is_locked(folder: Path, name: str = "lock") -> bool:
    """Whether there may be a process that holds the lock: one that was killed leaves the file, which nobody holds."""
    return fcntl is not None and (folder / f"{MARK}{name}").exists()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder of this process's own below ``parent``, gone when the block ends; those of killed processes go first.

    A process holds a lock on its folder as long as it lives, however it ends. Where there are no locks, nobody's folder
    is taken for a killed process's.

    Raises:
        OSError: nothing can be written there.
    """
    every = parent / f"{MARK}{_SCRATCH}lock"
    mutex = _lock(parent, every, shared=False, wait=lambda _: None)  # a folder that is being made is not locked yet
    try:
        for left in [path for path in parent.glob(f"{MARK}{_SCRATCH}*") if path.is_dir()]:
            _remove_dead(left)
        folder = parent / f"{MARK}{_SCRATCH}{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        own = _lock(folder, folder / f"{MARK}lock", shared=False, wait=None)
    finally:
        _unlock(mutex, every)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(own, folder / f"{MARK}lock")


def _remove_dead(folder: Path) -> None:
    """Delete a scratch folder that no process holds."""
    with suppress(InputError, OSError):
        file = _lock(folder, folder / f"{MARK}lock", shared=False, wait=None)
        if file is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(file, folder / f"{MARK}lock")


def tidy(folder: Path, *more: str) -> None:
    """Delete what a killed process left in a folder that is finished, where no process is at it now.

    Args:
        more: names in there that a finished folder has no more use for.
    """
    paths = [folder / name for name in more]
    if folder.is_dir() and (any(folder.glob(f"{MARK}*")) or any(path.exists() for path in paths)):
        with suppress(InputError), locked(folder):
            remove_leftovers(folder)
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)


def _lock(folder: Path, path: Path, shared: bool, wait: Callable[[str], None] | None) -> int | None:
    """The open, locked file; None where this file system or machine knows no locks."""
    if fcntl is None:
        return None
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _take(file, folder, how, wait)
        except BaseException as error:
            os.close(file)
            if isinstance(error, OSError) and error.errno in _UNLOCKABLE:
                return None
            raise
        if _same_file(file, path):  # whoever held it before may have deleted it since
            os.truncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
            return file
        os.close(file)


def _unlock(file: int | None, path: Path) -> None:
    if file is not None:
        with suppress(OSError):  # who still shares it keeps the file
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        os.close(file)


def _take(file: int, folder: Path, how: int, wait: Callable[[str], None] | None) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(file, 200, 0).decode(errors="replace") or "unknown"
        if wait is None:
            raise InputError(
                f"{folder} is being written to by another saelora process ({who}): wait until it has ended, or choose "
                "another --out"
            ) from None
        wait(who)
        fcntl.flock(file, how)


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
