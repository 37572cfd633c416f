"""What is handed to a scheduler, and what is asked of one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from saelora.manifest import read_json, write_json


@dataclass(frozen=True)
class Job:
    """A command that a scheduler runs.

    name: of its files.  what: it is, for a person.  words: of the command line, after ``saelora``.  ids: what it makes,
    points or runs.  needs: names of jobs that have to be done before.
    """

    name: str
    what: str
    words: tuple[str, ...]
    ids: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """A job that was given to a scheduler, under ``number`` there; ``begun`` is its log's size by then, in bytes."""

    job: Job
    number: str
    log: Path
    code_file: Path
    begun: int

    def code(self) -> int | None:
        """The command's exit code; None where it has none yet, or never got to write it."""
        try:
            return int(self.code_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def runs(self) -> bool:
        """Whether it has begun."""
        return self.log.exists() and self.log.stat().st_size > self.begun

    def write(self, file: Path) -> None:
        """For a later command, which then waits for this job instead of giving it again."""
        paths = {"log": str(self.log), "code_file": str(self.code_file)}
        write_json(file, {**asdict(self), **paths})

    @classmethod
    def read(cls, file: Path) -> "Given | None":
        """None where the file holds something else."""
        try:
            found = read_json(file)
            job: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in found["job"].items()
            }
            paths = {"log": Path(found["log"]), "code_file": Path(found["code_file"])}
            return cls(**{**found, **paths, "job": Job(**job)})
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
            return None


class Launcher(Protocol):
    """A scheduler."""

    place: str  # where jobs run, for a person
    at_once: int | None  # how many jobs it is given at a time where nothing is said; None: all

    def submit(self, words: tuple[str, ...], log: Path, code_file: Path) -> str:
        """Have ``worker.run_command`` run; the job's number.

        Raises:
            InputError: the scheduler refuses it.
        """
        ...

    def ended(self, number: str) -> str | None:
        """The scheduler's word for how a job ended, CANCELLED first where somebody wanted that; None before."""
        ...

    def still_there(self, number: str) -> bool:
        """Whether a job that an earlier command gave waits or runs."""
        ...

    def leave(self, numbers: list[str]) -> str:
        """This command is asked to stop: what becomes of its jobs, in words."""
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...
