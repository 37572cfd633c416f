"""Jobs given to a scheduler and waited for: in order, again where a worker was lost, by name where one failed."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from saelora.console import Console
from saelora.errors import on_one_line
from saelora.jobs.launch.job import Given, Job, Launcher
from saelora.train.interrupt import Interrupted, StopRequest

_PAUSE = 1.0  # seconds between two looks
_LATE = 10.0  # seconds that a file may take to show on another machine
_SAID = 15.0  # seconds between two lines about how far it is
_BAD_INPUT = 2
_STOPPED = {128 + Signals.SIGINT, 128 + Signals.SIGTERM, -Signals.SIGINT, -Signals.SIGTERM, -Signals.SIGHUP}


@dataclass(frozen=True)
class Failure:
    """A job that is given up, and why."""

    job: Job
    why: str
    log: Path


@dataclass
class Dispatch:
    """Hands out jobs.

    folder: for logs and records.  done: whether all that a job makes is there.  retries: how often a job whose worker
    was lost is given again.  at_once: most jobs at a time; None: as the launcher wants it.
    """

    folder: Path
    launcher: Launcher
    console: Console
    done: Callable[[Job], bool]
    retries: int
    at_once: int | None = None
    failures: list[Failure] = field(default_factory=list)
    total: int = 0  # jobs, the earlier ones among them
    _waiting: list[Job] = field(default_factory=list)
    _given: dict[str, Given] = field(default_factory=dict)  # by the job's name
    _lost: dict[str, int] = field(default_factory=dict)  # how often, by the job's name
    _ended: dict[str, float] = field(default_factory=dict)  # when a job without exit code was first seen ended
    _told: tuple[tuple[int, ...], float] = ((), 0.0)

    @property
    def used(self) -> bool:
        """Whether there is a job that was given, now or before."""
        return any(self.folder.glob("*.log")) or any(self.folder.glob("*.json"))

    def earlier(self) -> list[Given]:
        """Jobs of an earlier command that still wait or run; this one waits for them."""
        for file in sorted(self.folder.glob("*.json")):
            given = Given.read(file)
            if given is not None and given.code() is None and self.launcher.still_there(given.number):
                self._given[given.job.name] = given
            else:
                file.unlink(missing_ok=True)
                if given is not None:
                    given.code_file.unlink(missing_ok=True)
        there = list(self._given.values())
        if there:
            self.console.say(f"jobs of an earlier command still wait or run: {' '.join(each.number for each in there)}")
        return there

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Give all of them, and wait for these and the earlier ones.

        Raises:
            InputError: the scheduler refuses one.
            Interrupted: asked to stop; says what becomes of the jobs.
        """
        self._waiting = list(jobs)
        self.total = len(jobs) + len(self._given)
        with StopRequest() as stop:
            while self._waiting or self._given:
                self._give()
                for given in list(self._given.values()):
                    self._look_at(given)
                self._say()
                if stop.signum is not None:
                    told = self.launcher.leave([given.number for given in self._given.values()])
                    raise Interrupted(stop.signum, 0).with_advice(told)
                if self._given:
                    time.sleep(_PAUSE)
        return self.failures

    def _give(self) -> None:
        most = self.at_once or self.launcher.at_once
        for job in list(self._waiting):
            failed = {failure.job.name: failure.job.what for failure in self.failures}
            lacks = next((failed[name] for name in job.needs if name in failed), None)
            if lacks:
                self._waiting.remove(job)
                self._fail(job, f"needs {lacks}, which failed")
            elif (most is None or len(self._given) < most) and self._is_ready(job):
                self._waiting.remove(job)
                self._submit(job)

    def _is_ready(self, job: Job) -> bool:
        """Whether what it needs is done, and no earlier job writes to its files."""
        undone = {each.name for each in self._waiting} | self._given.keys()
        return job.name not in self._given and not undone & {*job.needs}

    def _submit(self, job: Job) -> None:
        log = self._log(job)
        code_file = self.folder / f"{job.name}-{uuid.uuid4().hex[:8]}.code"
        begun = log.stat().st_size if log.exists() else 0
        number = self.launcher.submit(job.words, log, code_file)
        self._given[job.name] = given = Given(job, number, log, code_file, begun)
        given.write(self.folder / f"{job.name}.json")
        self.console.say(f"job {number}: {job.what}, log {log}")

    def _look_at(self, given: Given) -> None:
        code, how = given.code(), None
        if code is None or code in _STOPPED:  # why it was stopped the scheduler alone knows
            how = self.launcher.ended(given.number)
            if how is None or (code is None and not self._is_late(given)):
                return
        if code == 0 and not self.done(given.job) and not self._is_late(given):
            return
        del self._given[given.job.name]
        self._ended.pop(given.number, None)
        (self.folder / f"{given.job.name}.json").unlink(missing_ok=True)
        given.code_file.unlink(missing_ok=True)
        if self.done(given.job):
            return
        if code == 0:
            self._fail(given.job, f"ended, but left nothing here: is {self.folder} the same there?")
        elif code == _BAD_INPUT:
            self._fail(given.job, _complaint(given) or "could not run")
        elif how is not None and how.startswith("CANCELLED"):
            self._fail(given.job, "was cancelled")
        else:
            self._lose(given, _in_words(code) or how or "")

    def _is_late(self, given: Given) -> bool:
        """Whether a file that should be there has had the time to show."""
        return time.monotonic() - self._ended.setdefault(given.number, time.monotonic()) > _LATE

    def _lose(self, given: Given, why: str) -> None:
        job = given.job
        lost = self._lost[job.name] = self._lost.get(job.name, 0) + 1
        if lost > self.retries:
            self._fail(job, f"was lost {lost} times, now by {why}")
        else:
            self.console.say(f"job {given.number} was lost ({why}): given again, {lost} of {self.retries} times")
            self._waiting.insert(0, job)

    def _fail(self, job: Job, why: str) -> None:
        self.failures.append(Failure(job, why, self._log(job)))
        self.console.say(f"failed: {job.what}: {why}")

    def _log(self, job: Job) -> Path:
        return self.folder / f"{job.name}.log"

    def _say(self) -> None:
        running = sum(given.runs() for given in self._given.values())
        queued = len(self._waiting) + len(self._given) - running
        now = (self.total - running - queued - len(self.failures), running, queued, len(self.failures))
        told, when = self._told
        if now == told or (self._given and time.monotonic() - when < _SAID):
            return
        self._told = now, time.monotonic()
        failed = f", {now[3]} failed" if now[3] else ""
        self.console.say(f"{now[0]} of {self.total} jobs done, {running} running, {queued} waiting{failed}")


def _complaint(given: Given) -> str:
    """What a command said last of why it cannot run."""
    lines = given.log.read_bytes()[given.begun :].decode(errors="replace").splitlines() if given.log.exists() else []
    said = next((line for line in reversed(lines) if line.startswith("saelora: ")), "")
    return on_one_line(said.removeprefix("saelora: "), 1000) if said else ""


def _in_words(code: int | None) -> str:
    if code is None:
        return ""
    if code in _STOPPED:
        return "told to stop"
    return f"signal {Signals(-code).name}" if code < 0 else f"exit code {code}"
