"""What each of two processes runs for test_jobs_together.py: one job after another, and what it noticed.

Usage: torchrun --nproc-per-node 2 jobs_together.py FOLDER; FOLDER/given.json holds each job's options.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

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


def main() -> int:
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
    everything = group.gather({**noticed, "written": written})
    if group.is_main:
        (ROOT / "noticed.json").write_text(json.dumps(everything))
    code = cli.main(["evaluate", "--adapter", given["evaluate"][1]["adapter"], "--device", "cpu", "--quiet"])
    assert not torch.distributed.is_initialized()
    return code


sys.exit(main())
