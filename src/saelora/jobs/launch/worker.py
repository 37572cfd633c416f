"""What a job of a scheduler runs: one saelora command in a process of its own, its output in a log."""

import ctypes
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

_PAUSE = 0.2  # seconds
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def run_command(words: Sequence[str], cwd: str, log: str, code_file: str, env: Mapping[str, str]) -> int:
    """Run ``saelora WORDS`` to its end; where this process is asked to end before, so is that one, which saves first.

    Args:
        cwd: the folder that relative paths in ``words`` start from.
        log: file that stdout and stderr are appended to.
        code_file: gets the exit code, less than 0 for a signal's number; it is not there while the command runs.
        env: variables besides those of this process.

    Returns:
        The exit code.
    """
    Path(code_file).unlink(missing_ok=True)  # of the job before SLURM requeued it
    with Path(log).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                time.sleep(_PAUSE)  # a wait would not end where Ray raises KeyboardInterrupt in here
        finally:  # also where submitit does so, when time is up
            if process.poll() is None:
                process.send_signal(signal.SIGHUP)
                process.wait()
            part = Path(f"{code_file}.part")
            part.write_text(json.dumps(process.returncode))
            part.replace(code_file)
    return process.returncode


def _main() -> None:
    """The command's process: asked to stop once, by its parent or by its parent's end, whichever comes first."""
    parent, asked = os.getppid(), False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:  # a second SIGTERM would not let it save
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    os.setpgrp()  # Ctrl-C in a terminal is for the command that hands out jobs
    signal.signal(signal.SIGHUP, stop)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning, sent to all: the parent passes it on
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGHUP)
        if os.getppid() != parent:  # it ended meanwhile
            sys.exit(128 + signal.SIGTERM)
    print(f"$ saelora {shlex.join(sys.argv[1:])}\nprocess {os.getpid()} on {socket.gethostname()}", flush=True)
    runpy.run_module("saelora", run_name="__main__")


if __name__ == "__main__":
    _main()
