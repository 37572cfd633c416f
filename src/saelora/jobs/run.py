"""What every training command does around its loop: the output folder, the recorded config, resuming."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saelora.assemble import new_folder
from saelora.config import option, read_yaml, to_dict
from saelora.console import Bar
from saelora.errors import InputError
from saelora.train.interrupt import Interrupted
from saelora.train.loop import Loop, LoopState

_NOT_COMPARED = ("resume", "overwrite", "quiet", "device", "track", "checkpoint_seconds")


@dataclass(kw_only=True)
class RunOptions:
    """Run"""

    out: str | None = option(None, "folder for all results; never overwritten silently")
    seed: int = option(0, "of rows, initial weights and dropout")
    resume: bool = option(False, "go on with the interrupted run in --out")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    track: str | None = option(None, "also log to tensorboard, wandb or trackio (metrics.jsonl is always written)")
    checkpoint_seconds: float = option(120.0, "seconds between checkpoints")


def check_out(config: Any) -> Path:
    """The folder to write to, before anything is loaded.

    Raises:
        InputError: no --out, it exists, or what is to be resumed is another run.
    """
    if not config.out:
        raise InputError("no output folder given: name it with --out DIR")
    folder = Path(config.out)
    recorded = folder / "config.yaml"
    if config.resume and recorded.exists():
        before, now = read_yaml(recorded), to_dict(config)
        changed = [k for k in now if k not in _NOT_COMPARED and k != "out" and before.get(k) != now[k]]
        if changed:
            key = changed[0]
            raise InputError(
                f"--resume: {folder} was started with {key} {before.get(key)!r}, now it is {now[key]!r}: "
                f"repeat its options (they are in {recorded}), or start anew with another --out"
            )
        return folder
    return new_folder(folder, overwrite=config.overwrite or config.resume)


def start(config: Any, folder: Path) -> None:
    """Make the folder and record the configuration; only called once everything has loaded."""
    if config.overwrite and not config.resume and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def run_loop(loop: Loop, command: str, bar: Bar, *, resume: bool) -> LoopState:
    """Run a loop to its end; an interruption says how to go on."""
    if resume and loop.resume():
        bar.update(loop.state.n_tokens)
    try:
        return loop.run()
    except Interrupted as stop:
        raise stop.with_advice(
            f"stopped after {loop.state.n_tokens:,} tokens (step {loop.state.step} of {loop.n_steps}) and saved; "
            f"to go on, repeat the command with --resume, or: saelora {command} --config {loop.folder}/config.yaml "
            f"--out {loop.folder} --resume"
        ) from None
    finally:
        loop.tracker.close()
