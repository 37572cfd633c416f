"""What each of two processes runs for the tests here: one job after another, and what it noticed.

Usage: torchrun --nproc-per-node 2 jobs_together.py FOLDER; FOLDER/given.json holds each job's options.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import group_promises
import torch
from matplotlib.figure import Figure

import saelora
from saelora import cli
from saelora.errors import InputError
from saelora.train.distributed import current_group
from saelora.train.interrupt import Interrupted

ROOT = Path(sys.argv[1])
written: list[str] = []


def note_writes(event: str, args: tuple[Any, ...]) -> None:
    """Every file below ROOT that this process opens for writing, and every folder that it makes there."""
    writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writing or event in ("os.mkdir", "os.rename", "os.remove")) and str(ROOT) in str(args[0]):
        written.append(f"{event} {args[0]}")


def stop_after(metrics: Path, n_lines: int) -> None:
    """SIGTERM to this process once so many lines are logged."""

    def watch() -> None:
        while not metrics.exists() or metrics.read_text().count("\n") < n_lines:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def swept(recipe: Path, out: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a sweep, as on the command line but for the end of the group."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = cli._run(["sweep", str(recipe), "--out", str(out)], print)
    return code, printed.getvalue(), said.getvalue()


def main() -> int:
    Figure.savefig = lambda self, file, **options: file.write(b"")  # nobody looks at these
    given = json.loads((ROOT / "given.json").read_text())
    noticed: dict[str, Any] = {}
    sys.addaudithook(note_writes)
    group = current_group("cpu")
    noticed["results"] = {
        name: getattr(saelora, job)(**options) for name, (job, options) in given.items() if name != "stopped"
    }
    job, options = given["stopped"]
    if group.rank == 1:  # which is not the one that writes
        stop_after(Path(options["out"]) / "metrics.jsonl", 2)
    try:
        getattr(saelora, job)(**options)
    except Interrupted as stop:
        noticed["stopped"] = [stop.signum, stop.step]
    try:
        saelora.adapt(**{**given["adapt"][1], "out": str(ROOT / "too-few"), "batch_rows": 1})
    except InputError as error:
        noticed["too few rows"] = str(error)
    noticed["promises"] = {**group_promises.exchanges(group), **group_promises.loops(group, ROOT / "promises")}
    noticed["written"] = [*written]  # in a sweep each process writes the points of its groups
    noticed["sweep"] = swept(ROOT / "sweep.yaml", ROOT / "two" / "sweep")
    everything = group.gather(noticed)
    if group.is_main:
        (ROOT / "noticed.json").write_text(json.dumps(everything))
    code = cli.main(["evaluate", "--adapter", given["evaluate"][1]["adapter"], "--device", "cpu", "--quiet"])
    assert not torch.distributed.is_initialized()
    return code


sys.exit(main())
