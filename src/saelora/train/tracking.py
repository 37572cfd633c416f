"""Where a run's numbers go while it runs: metrics.jsonl always, other trackers through Accelerate."""

import json
import logging
import netrc
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from saelora.errors import InputError, on_one_line
from saelora.files import write_whole, writing

logger = logging.getLogger(__name__)
TRACKERS = ("tensorboard", "wandb", "trackio")
_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")  # wandb's modes


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

    def write(self, row: Mapping[str, object]) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill


def check_tracker(name: str | None) -> None:
    """Raise InputError where a tracker (None for none) is unknown, cannot be imported, or has nobody logged in."""
    if name is None:
        return
    if name not in TRACKERS:
        raise InputError(f"tracker {name!r} is not known: expected one of {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise InputError(f"tracker {name!r} is not installed: run pip install 'saelora[{name}]'")
    if name == "wandb" and os.environ.get("WANDB_MODE") not in _WITHOUT_LOGIN:
        _check_login()


def _check_login() -> None:
    """Raise InputError where wandb has no key; the network is not asked, so that a wrong one shows at the start."""
    try:
        import wandb

        settings = wandb.setup().settings
        key = settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        if settings.mode in _WITHOUT_LOGIN or key or _in_netrc(urlsplit(settings.base_url).hostname or ""):
            return
    except Exception as error:  # wandb's own, of which there are many
        raise _failed("wandb", error) from error
    raise InputError(
        "tracker wandb has nobody logged in: run wandb login, set WANDB_API_KEY, or WANDB_MODE=offline to log to files"
    )


def _in_netrc(host: str) -> bool:
    """Whether the file that wandb login writes to has a password for a host."""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            return netrc.netrc(path).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _failed(name: str, error: Exception) -> InputError:
    return InputError(
        f"tracker {name} cannot be started: {on_one_line(error)}; leave out --track (metrics.jsonl is always written)"
    )


class Tracker:
    """A tracker of Accelerate's by name, or nothing for None. One that fails during a run is left, the run goes on.

    Raises:
        InputError: the tracker is unknown, or it cannot be started.
    """

    def __init__(self, name: str | None, folder: Path, config: Mapping[str, object]):
        self.name = name
        self._accelerator: Any = None
        if name is None:
            return
        check_tracker(name)
        flat = {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in config.items()}
        try:
            from accelerate import Accelerator

            self._accelerator = Accelerator(log_with=name, project_dir=str(folder))
            self._accelerator.init_trackers("saelora", config=flat)
        except Exception as error:  # trackers share no base class for what can go wrong with them
            raise _failed(name, error) from error

    def write(self, row: Mapping[str, object], step: int) -> None:
        if self._accelerator is not None:
            values = {k: v for k, v in row.items() if isinstance(v, int | float)}
            self._or_leave(partial(self._accelerator.log, values, step=step))

    def close(self) -> None:
        # not end_training, which would also disconnect the processes of a run
        for tracker in self._accelerator.trackers if self._accelerator is not None else ():
            self._or_leave(tracker.finish)

    def _or_leave(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            logger.warning("tracker %s has failed, the run goes on without it: %s", self.name, on_one_line(error))
            self._accelerator = None
