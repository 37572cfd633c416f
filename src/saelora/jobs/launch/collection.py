"""A folder that many jobs write to, each its own part, while one command waits for all of them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from saelora.config import Configuration, Options, to_dict
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import write_whole, writing
from saelora.jobs.launch.dispatch import Dispatch, Failure
from saelora.jobs.launch.job import Job
from saelora.jobs.launch.options import launcher_of
from saelora.jobs.run import Output, check_place, open_collection
from saelora.jobs.spec import digest
from saelora.locks import locked, tidy

LAUNCH = "launch"  # in the collection's folder: logs, and what was given


class Launched(Output, Protocol):
    """Options of a command that writes a folder and may hand out jobs."""

    @property
    def launcher(self) -> str | None: ...
    @property
    def launcher_options(self) -> tuple[str, ...]: ...
    @property
    def launcher_jobs(self) -> int | None: ...
    @property
    def launcher_retries(self) -> int: ...


@dataclass(frozen=True)
class _Resumed:
    """A folder that was just emptied, or that other jobs write to: gone on with."""

    out: str
    resume: bool = True
    overwrite: bool = False


@contextmanager
def handing_out(
    config: Launched, inside: str, kind: str, console: Console, done: Callable[[Path, Job], bool]
) -> Iterator[tuple[Path, Dispatch]]:
    """The open folder of a command that makes many runs, and what hands them out as jobs.

    Jobs share the folder's lock with this command, which alone holds that of the folder's ``launch``.

    Args:
        inside: where each run has its file.
        done: whether all that a job makes is in the folder.

    Raises:
        InputError: as ``open_collection`` and ``launcher_of`` do, or jobs of what is to be deleted still wait or run.
    """
    folder = check_place(config)
    launcher = launcher_of(config.launcher, config.launcher_options, folder / LAUNCH)
    dispatch = Dispatch(
        (folder / LAUNCH).resolve(),
        launcher,
        console,
        lambda job: done(folder, job),
        config.launcher_retries,
        config.launcher_jobs,
    )
    try:
        with _opened(config, dispatch, folder, inside, kind):
            yield folder, dispatch
    finally:
        launcher.close()
    tidy(folder)


@contextmanager
def _opened(config: Launched, dispatch: Dispatch, folder: Path, inside: str, kind: str) -> Iterator[None]:
    place: Output = config
    if config.overwrite:
        if there := dispatch.earlier():
            numbers = " ".join(given.number for given in there)
            raise InputError(
                f"jobs of {folder} still wait or run: wait for them, or stop them first: scancel {numbers}"
            )
        with ExitStack() as alone:
            open_collection(config, inside, kind, alone)
        place = _Resumed(str(folder))
    with ExitStack() as held:
        open_collection(place, inside, kind, held, shared=True)
        held.enter_context(locked(folder / LAUNCH))
        held.callback(lambda: None if dispatch.used else shutil.rmtree(folder / LAUNCH, ignore_errors=True))
        yield


def frozen(folder: Path, name: str, values: Configuration | Options) -> Path:
    """A file of these options for jobs: what was asked for, whatever becomes of the user's own file while they wait."""
    plain = to_dict(values) if isinstance(values, Configuration) else values
    file = (folder / LAUNCH / f"{name}-{digest(plain)}.yaml").resolve()
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, yaml.safe_dump(plain, sort_keys=False).encode())
    return file


def failed(failures: Sequence[Failure], total: int, what: str, folder: Path) -> InputError:
    """What a command says at its end of jobs that were given up.

    Args:
        what: ``groups`` or ``runs``, of which there are ``total``.
    """
    first, ids = failures[0], [each for failure in failures for each in failure.job.ids]
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    of = f"; not done: {shown}" if ids else ""
    why = first.why.partition(f"the rest is in {folder.resolve()}: ")[2] or first.why
    which = f"{first.job.what}: {why}{of}; log: {first.log}"
    return InputError(f"{len(failures)} of {total} {what} failed, the rest is in {folder}: {which}")
