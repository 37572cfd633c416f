"""What every training command does around its loop: the output folder, the recorded config, resuming."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import yaml

from saelora.config import Configuration, option, read_yaml, to_dict, updated
from saelora.core.group import Group
from saelora.errors import InputError
from saelora.files import clear, in_use, left_in, remove_leftovers, write_whole, writing
from saelora.limits import NOT_NEGATIVE, SEED, OneOf
from saelora.locks import is_locked, locked
from saelora.manifest import MANIFEST, check_room, check_writable
from saelora.options import ModelConfig
from saelora.records import JsonObject
from saelora.train.distributed import current_group
from saelora.train.tracking import TRACKERS, check_tracker

RECORDED, CHECKPOINTS = "config.yaml", "checkpoints"
NOT_COMPARED = (
    "out",
    "resume",
    "overwrite",
    "quiet",
    "device",
    "shard",
    "compile",
    "graph",
    "track",
    "checkpoint_seconds",
)


class RunConfig(Configuration):
    """Run"""

    out: str | None = option(None, "folder for all results; never overwritten silently")
    seed: int = option(0, "of rows, initial weights and dropout", limit=SEED)
    resume: bool = option(False, "go on with the interrupted run in --out")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    track: str | None = option(
        None, "also log to tensorboard, wandb or trackio (metrics.jsonl is always written)", limit=OneOf(TRACKERS)
    )
    checkpoint_seconds: float = option(120.0, "seconds between checkpoints", limit=NOT_NEGATIVE)


R = TypeVar("R", bound=RunConfig)


class Output(Protocol):
    """Options of a command that writes a folder."""

    @property
    def out(self) -> str | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def overwrite(self) -> bool: ...


def processes(config: ModelConfig) -> Group:
    """The processes that a launcher started for this command, or this one alone.

    Raises:
        InputError: they do not fit the machine or the options.
    """
    group = current_group(config.device)
    if config.shard and group.world == 1:
        raise InputError(
            "--shard splits a model over several processes, this is one: start them with "
            "torchrun --nproc-per-node N -m saelora ..., or leave it out"
        )
    if config.shard and config.compile == "on":
        raise InputError("--compile on is not tested on sharded layers: leave out --compile or --shard")
    return group


def check_place(config: Output) -> Path:
    """The folder to write to; InputError where there is no --out, or nothing can be written there."""
    if not config.out:
        raise InputError("no output folder given: name it with --out DIR")
    if config.resume and config.overwrite:
        raise InputError("--resume goes on with what is in --out, --overwrite deletes it: give one of them")
    check_writable(Path(config.out))
    return Path(config.out)


def taken_up(config: R) -> R:
    """With --resume: what was not given is as the run in --out recorded it.

    Raises:
        InputError: the record cannot be read.
    """
    recorded = Path(config.out or "") / RECORDED
    if not config.resume or not config.out or not recorded.is_file():
        return config
    kept = config.given | {*NOT_COMPARED}
    then = {key: value for key, value in read_yaml(recorded).items() if key in vars(config) and key not in kept}
    return updated(config, then, str(recorded))


def check_out(config: RunConfig) -> Path:
    """The folder to write to, before anything is loaded.

    Raises:
        InputError: no --out, it exists, or what is to be resumed is another run.
    """
    folder = check_place(config)
    _check_kept(config, folder)
    if folder.is_dir() and is_locked(folder):  # said before anything is loaded; ``start`` is what makes sure
        with locked(folder):
            pass
    check_tracker(config.track)
    return folder


def _check_kept(config: RunConfig, folder: Path) -> None:
    """Raise InputError where there is something in the folder that the run would neither go on with nor may delete."""
    recorded, taken = folder / RECORDED, in_use(folder)
    if taken and not recorded.exists():
        raise InputError(f"{folder} exists and is no saelora run, so it is left alone: choose another --out")
    if taken and not (config.resume or config.overwrite):
        raise InputError(f"{folder} exists: choose another --out, --resume to go on with it, or --overwrite")
    if taken and config.resume:
        # a run from before an option was there has that option's default
        _check_same({**to_dict(type(config)()), **read_yaml(recorded)}, to_dict(config), recorded)


def open_collection(config: Output, inside: str, kind: str, held: ExitStack, *, shared: bool = False) -> Path:
    """The folder of a command that makes many runs, each in a file of its own under ``inside``.

    Args:
        held: closes the folder's lock, when the command has written everything.
        shared: several processes may work on the folder, if all of them are started so.

    Raises:
        InputError: no --out, or it holds something else, or results that are neither to be kept nor to be deleted; or
            another process is writing to it.
    """
    folder = check_place(config)
    _check_collection(config, folder, inside, kind)
    made = [] if folder.exists() else [folder]
    check_room(folder, 2**20)
    held.callback(_drop, made)
    held.enter_context(locked(folder, shared=shared))
    held.callback(lambda: _drop([folder / inside]) if {path.name for path in left_in(folder)} == {inside} else None)
    _check_collection(config, folder, inside, kind)  # again: another process may just have ended
    if config.overwrite and not config.resume:
        clear(folder, ["results.json"], inside)
    if not shared:
        remove_leftovers(folder)
    with writing(folder):
        (folder / inside).mkdir(exist_ok=True)
    return folder


def _drop(folders: list[Path]) -> None:
    """Remove empty folders: nothing is left of a command that was refused before it had made anything."""
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def _check_collection(config: Output, folder: Path, inside: str, kind: str) -> None:
    if in_use(folder):
        if not (folder / inside).is_dir():
            raise InputError(f"{folder} exists and is no {kind}, so it is left alone: choose another --out")
        if not (config.resume or config.overwrite):
            raise InputError(f"{folder} exists: choose another --out, --resume to go on with it, or --overwrite")


def _check_same(before: JsonObject, now: JsonObject, recorded: Path) -> None:
    changed = [key for key in now if key not in NOT_COMPARED and before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"--resume: {recorded.parent} was started with {key} {before.get(key)!r}, now it is {now[key]!r}: "
            "leave it out, or start anew with another --out"
        )


def start(config: RunConfig, folder: Path, finished: str, held: ExitStack) -> None:
    """Make the folder, lock it and record the configuration; only called once everything has loaded.

    Args:
        finished: the file that a finished run has.
        held: closes the folder's lock, when the run has written everything.

    Raises:
        InputError: another run is writing to the folder, or has just written it.
    """
    held.enter_context(locked(folder))
    _check_kept(config, folder)  # again: another run may have begun, or ended, while this one loaded
    if config.overwrite and not config.resume:
        clear(folder, [finished, MANIFEST], RECORDED)
    if config.resume and (folder / finished).exists():
        raise InputError(f"{folder} has just been finished by another process: nothing to resume")
    remove_leftovers(folder)
    if not (folder / RECORDED).exists():
        # neither belongs to what was run: reused as --config, the file must not delete another folder by itself
        values = {key: value for key, value in to_dict(config).items() if key not in ("resume", "overwrite")}
        write_whole(folder / RECORDED, yaml.safe_dump(values, sort_keys=False).encode())
