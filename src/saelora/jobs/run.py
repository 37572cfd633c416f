"""What every training command does around its loop: the output folder, the recorded config, resuming."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saelora.config import Configuration, option, read_yaml, to_dict
from saelora.console import Bar
from saelora.errors import InputError
from saelora.manifest import check_room
from saelora.train.distributed import Group
from saelora.train.interrupt import Interrupted
from saelora.train.loop import Loop, LoopState
from saelora.train.tracking import check_tracker

RECORDED = "config.yaml"
NOT_COMPARED = ("out", "resume", "overwrite", "quiet", "device", "shard", "compile", "track", "checkpoint_seconds")


@dataclass(kw_only=True)
class RunOptions(Configuration):
    """Run"""

    out: str | None = option(None, "folder for all results; never overwritten silently")
    seed: int = option(0, "of rows, initial weights and dropout")
    resume: bool = option(False, "go on with the interrupted run in --out")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    track: str | None = option(None, "also log to tensorboard, wandb or trackio (metrics.jsonl is always written)")
    checkpoint_seconds: float = option(120.0, "seconds between checkpoints")


def processes(config: Any) -> Group:
    """The processes that a launcher started for this command, or this one alone.

    Raises:
        InputError: they do not fit the machine or the options.
    """
    group = Group.current(config.device)
    if config.shard and group.world == 1:
        raise InputError(
            "--shard splits a model over several processes, this is one: start them with "
            "torchrun --nproc-per-node N -m saelora ..., or leave it out"
        )
    if config.shard and config.compile:
        raise InputError("--compile is not tested on sharded layers: leave out --compile or --shard")
    return group


def check_out(config: Any) -> Path:
    """The folder to write to, before anything is loaded.

    Raises:
        InputError: no --out, it exists, or what is to be resumed is another run.
    """
    if not config.out:
        raise InputError("no output folder given: name it with --out DIR")
    folder = Path(config.out)
    recorded = folder / RECORDED
    in_use = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if in_use and not recorded.exists():
        raise InputError(f"{folder} exists and is no saelora run, so it is left alone: choose another --out")
    if in_use and not (config.resume or config.overwrite):
        raise InputError(f"{folder} exists: choose another --out, --resume to go on with it, or --overwrite")
    if in_use and config.resume:
        # a run from before an option was there has that option's default
        _check_same({**to_dict(type(config)()), **read_yaml(recorded)}, to_dict(config), recorded)
    check_tracker(config.track)
    return folder


def open_collection(config: Any, inside: str, kind: str) -> Path:
    """The folder of a command that makes many runs, each in a file of its own under ``inside``.

    Raises:
        InputError: no --out, or it holds something else, or results that are neither to be kept nor to be deleted.
    """
    if not config.out:
        raise InputError("no output folder given: name it with --out DIR")
    folder = Path(config.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / inside).is_dir():
            raise InputError(f"{folder} exists and is no {kind}, so it is left alone: choose another --out")
        if not (config.resume or config.overwrite):
            raise InputError(f"{folder} exists: choose another --out, --resume to go on with it, or --overwrite")
        if config.overwrite and not config.resume:
            shutil.rmtree(folder)
    check_room(folder, 2**20)
    (folder / inside).mkdir(exist_ok=True)
    return folder


def _check_same(before: dict[str, Any], now: dict[str, Any], recorded: Path) -> None:
    changed = [key for key in now if key not in NOT_COMPARED and before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"--resume: {recorded.parent} was started with {key} {before.get(key)!r}, now it is {now[key]!r}: "
            f"repeat its options (they are in {recorded}), or start anew with another --out"
        )


def start(config: Any, folder: Path) -> None:
    """Make the folder and record the configuration; only called once everything has loaded."""
    if config.overwrite and not config.resume and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORDED).exists():
        # neither belongs to what was run: reused as --config, the file must not delete another folder by itself
        values = {key: value for key, value in to_dict(config).items() if key not in ("resume", "overwrite")}
        (folder / RECORDED).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def run_loop(loop: Loop, command: str, bar: Bar, *, resume: bool) -> LoopState:
    """Run a loop to its end; an interruption says how to go on."""
    if resume and loop.resume():
        bar.start_at(loop.state.n_tokens)
    try:
        return loop.run()
    except Interrupted as stop:
        raise stop.with_advice(
            f"stopped after {loop.state.n_tokens:,} tokens (step {loop.state.step} of {loop.n_steps}) and saved; "
            f"to go on, repeat the command with --resume, or: saelora {command} --config {loop.folder / RECORDED} "
            f"--out {loop.folder} --resume"
        ) from None
    finally:
        loop.tracker.close()
