"""Options of commands that can hand their work to a scheduler, and the scheduler that they name."""

import os
from pathlib import Path
from typing import Any, Literal

import yaml

from saelora.config import Configuration, option
from saelora.errors import InputError
from saelora.jobs.launch.job import Launcher
from saelora.limits import NOT_NEGATIVE, POSITIVE


class LaunchConfig(Configuration):
    """Launcher"""

    launcher: Literal["submitit", "ray"] | None = option(
        None, "hand the work out as jobs and wait for them: to SLURM by submitit, or to Ray"
    )
    launcher_options: tuple[str, ...] = option(
        (), "KEY=VALUE of each job, as partition=gpu gpus_per_node=1 timeout_min=240; of Ray num_gpus=1; see the guide"
    )
    launcher_jobs: int | None = option(
        None, "most jobs at a time; default: all, which wait in the scheduler's queue", limit=POSITIVE
    )
    launcher_retries: int = option(
        2, "how often a job whose worker was lost is given again, to go on from its checkpoint", limit=NOT_NEGATIVE
    )


def launcher_of(name: str | None, options: tuple[str, ...], folder: Path) -> Launcher:
    """The scheduler of that name.

    Args:
        options: KEY=VALUE of its jobs.
        folder: for what the launcher writes; made where something is.

    Raises:
        InputError: it is not installed or not there, or an option is not one of its own.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("--launcher starts processes of its own, this is one of torchrun's: leave out one of them")
    values = _values(options)
    if name == "ray":
        from saelora.jobs.launch.on_ray import RayLauncher

        return RayLauncher(values)
    from saelora.jobs.launch.on_slurm import SubmititLauncher

    return SubmititLauncher(values, folder / "submitit")


def _values(texts: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE with the value in YAML."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, shown = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(f"--launcher-options {text!r}: expected KEY=VALUE, such as timeout_min=240")
        if key in found:
            raise InputError(f"--launcher-options gives {key} twice: keep one")
        try:
            found[key] = yaml.safe_load(shown)
        except yaml.YAMLError:
            raise InputError(f"--launcher-options {text!r}: {shown!r} is no YAML value") from None
    return found
