"""Where a run's numbers go while it runs: metrics.jsonl always, other trackers through Accelerate."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saelora.errors import InputError
from saelora.files import write_whole, writing

TRACKERS = ("tensorboard", "wandb", "trackio")


class Metrics:
    """Appends one JSON line a logging step to ``metrics.jsonl``; on resume, lines after the checkpoint are dropped."""

    def __init__(self, path: Path, *, after_step: int | None = None):
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if after_step is not None and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= after_step]
        write_whole(path, "".join(line + "\n" for line in kept).encode())

    def write(self, row: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill


def check_tracker(name: str | None) -> None:
    """Raise InputError where a tracker (None for none) is unknown, or its package is not installed."""
    if name is None:
        return
    if name not in TRACKERS:
        raise InputError(f"tracker {name!r} is not known: expected one of {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise InputError(f"tracker {name!r} is not installed: run pip install 'saelora[{name}]'")


class Tracker:
    """A tracker of Accelerate's by name, or nothing for None.

    Raises:
        InputError: the tracker's package is not installed, or the name is unknown.
    """

    def __init__(self, name: str | None, folder: Path, config: dict[str, Any]):
        self._accelerator = None
        if name is None:
            return
        check_tracker(name)
        from accelerate import Accelerator

        self._accelerator = Accelerator(log_with=name, project_dir=str(folder))
        flat = {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in config.items()}
        self._accelerator.init_trackers("saelora", config=flat)

    def write(self, row: dict[str, Any], step: int) -> None:
        if self._accelerator is not None:
            self._accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=step)

    def close(self) -> None:
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:  # end_training would also disconnect the processes of a run
                tracker.finish()
