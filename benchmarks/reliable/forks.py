"""Commands in processes of their own, forked from one that has everything imported: a kill costs a fork, not an import.

The parent never starts a thread (one OpenMP thread, no parallel tokenizers), so that a fork is a whole process.
"""

import importlib
import json
import os
import pkgutil
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Kill:
    """When a process is killed with SIGKILL.

    at: before its n-th operation on a file of the watched folder (open to write, rename, remove, ...).
    after: ``seconds`` after the n-th such operation has begun.  time: ``seconds`` after its start.
    """

    mode: str  # at, after, time
    n: int = 0
    seconds: float = 0.0


@dataclass
class Ended:
    """How a process ended: ``code`` is None where it was killed."""

    code: int | None
    out: str
    err: str
    seconds: float
    trace: list[dict[str, Any]] = field(default_factory=list)  # loops begun, and the count of operations

    @property
    def operations(self) -> int:
        """Operations on files of the watched folder, where the process ended by itself."""
        return sum(line["operations"] for line in self.trace if "operations" in line)

    @property
    def loops(self) -> dict[str, int]:
        """The step at which each folder's loop began."""
        return {line["loop"]: line["step"] for line in self.trace if "loop" in line}


def preload() -> None:
    """Import what commands import, in this process."""

    importlib.import_module("saelora.cli")
    for package in ("saelora.jobs", "saelora.reporting", "saelora.evals", "saelora.saes", "saelora.models"):
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not found.name.endswith(".__main__"):  # a program of another environment
                importlib.import_module(found.name)
    for name in (
        "encodings.utf_8_sig",
        "encodings.idna",
        "matplotlib.pyplot",
        "peft",
        "sae_lens",
        "transformers.models.llama.modeling_llama",
        "scipy.stats",
    ):
        importlib.import_module(name)


def threads() -> list[str]:
    """Names of this process's threads, the main one and the allocator's aside (that one knows of forks)."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names.remove(Path("/proc/self/comm").read_text().strip())
    return [name for name in names if not name.startswith("jemalloc")]


@dataclass
class Started:
    """A command at work in a fork."""

    child: int
    told: int
    paths: dict[str, Path]
    kill: Kill | None
    began: float

    def wait(self, limit: float = 300.0) -> Ended:
        """How it ended; it is killed when its time has come, and where it takes longer than ``limit`` seconds."""
        try:
            status = _wait(self.child, self.told, self.kill, self.began, limit)
        finally:
            os.close(self.told)
        seconds = time.monotonic() - self.began
        code = os.waitstatus_to_exitcode(status)
        trace = [json.loads(line) for line in self.paths["trace"].read_text().splitlines()]
        out, err = (self.paths[name].read_text(errors="replace") for name in ("out", "err"))
        return Ended(None if code == -signal.SIGKILL else code, out, err, seconds, trace)


def run(argv: Sequence[str], scratch: Path, *, limit: float = 300.0, **options: Any) -> Ended:
    """``start`` and ``wait``."""
    return start(argv, scratch, **options).wait(limit)


def start(
    argv: Sequence[str],
    scratch: Path,
    *,
    watched: Path | None = None,
    kill: Kill | None = None,
    setup: Callable[[], None] = lambda: None,
) -> Started:
    """``saelora ARGV`` in a fork.

    Args:
        scratch: a folder for what it prints.
        watched: the folder whose operations are counted.
        kill: when to kill it.
        setup: run in the fork before the command: limits, another clock, another user.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    paths = {name: scratch / name for name in ("out", "err", "trace")}
    for path in paths.values():
        path.write_bytes(b"")
    told, tell = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(told)
        _child(argv, paths, watched, kill, setup, tell)
    os.close(tell)
    return Started(child, told, paths, kill, started)


def _wait(child: int, told: int, kill: Kill | None, started: float, limit: float) -> int:
    """The child's status; it is killed when the time has come."""
    until = started + limit
    if kill is not None and kill.mode == "time":
        until = started + kill.seconds
    if kill is not None and kill.mode == "after":
        ready, _, _ = select.select([told], [], [], limit)
        if ready and os.read(told, 1):
            until = time.monotonic() + kill.seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        left = until - time.monotonic()
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(min(left, 0.005))


def _child(
    argv: Sequence[str],
    paths: dict[str, Path],
    watched: Path | None,
    kill: Kill | None,
    setup: Callable[[], None],
    tell: int,
) -> None:
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(paths[name], os.O_WRONLY | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        trace = os.open(paths["trace"], os.O_WRONLY | os.O_APPEND)
        _note_loops(trace)
        setup()
        count = _count(watched, kill, tell)
        from saelora.cli import main

        code = main(list(argv))
        os.write(trace, (json.dumps({"operations": count()}) + "\n").encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _note_loops(trace: int) -> None:
    """Write down at which step each training loop begins."""
    from saelora.train.loop import Loop

    run_loop = Loop.run

    def noted(self: Any) -> Any:
        os.write(trace, (json.dumps({"loop": str(self.folder), "step": self.state.step}) + "\n").encode())
        return run_loop(self)

    Loop.run = noted  # type: ignore[method-assign]


def _count(watched: Path | None, kill: Kill | None, tell: int) -> Callable[[], int]:
    """Count operations on files below ``watched``, and act on the n-th; returns how many there were."""
    if watched is None:
        return lambda: 0
    prefix, seen = str(watched.absolute()), 0
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & writing:
                return
        elif event not in _WRITES:
            return
        if not isinstance(args[0], str | Path) or not str(Path(args[0]).absolute()).startswith(prefix):
            return
        seen += 1
        if kill is not None and seen == kill.n:
            if kill.mode == "at":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kill.mode == "after":
                os.write(tell, b"x")

    sys.addaudithook(hook)
    return lambda: seen


def a_kill(draw: random.Random, operations: int, seconds: float) -> Kill:
    """A random one: two in three at a write, the others at any moment."""
    mode = draw.choice(("at", "after", "time"))
    if mode == "time":
        return Kill(mode, seconds=draw.uniform(0.0, seconds))
    return Kill(mode, draw.randint(1, max(1, operations)), draw.uniform(0.0, 0.004))


def complaint(ended: Ended) -> list[tuple[str, str]]:
    """What is wrong with how a command ended that was to refuse its input: in one line, with exit code 2."""
    if ended.code is None:
        return [("code", "killed: it took longer than its limit")]
    if "Traceback" in ended.err:
        return [("traceback", " | ".join(ended.err.strip().splitlines()[-3:])[-400:])]
    faults = [] if ended.code == 2 else [("code", f"exit code {ended.code}: {ended.err.strip()[-300:]}")]
    if ended.code == 2 and (ended.err.count("\n") != 1 or not ended.err.startswith("saelora: ") or ended.out):
        faults.append(("lines", repr(ended.err[-400:] + ended.out[-100:])))
    return faults
