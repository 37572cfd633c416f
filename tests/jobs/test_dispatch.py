"""Jobs in order, again, and given up: by a scheduler whose jobs end as each test says."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from saelora.console import Console
from saelora.jobs.launch import dispatch as module
from saelora.jobs.launch.dispatch import Dispatch
from saelora.jobs.launch.job import Job
from saelora.train.interrupt import Interrupted

Ends = Callable[[Path, Path, Path], str | None]  # of out, log, code file: the scheduler's word; None: it goes on


def done(out: Path, log: Path, code_file: Path) -> str:
    out.touch()
    code_file.write_text("0")
    return "COMPLETED"


def refused(out: Path, log: Path, code_file: Path) -> str:
    log.write_text("saelora: an older complaint\nsaelora: rank is 0, expected 1 or more\n")
    code_file.write_text("2")
    return "COMPLETED"


def killed(out: Path, log: Path, code_file: Path) -> str:
    return "OUT_OF_MEMORY"


def cancelled(out: Path, log: Path, code_file: Path) -> str:
    code_file.write_text("143")
    return "CANCELLED by 1000"


def cancelled_early(out: Path, log: Path, code_file: Path) -> str:
    code_file.write_text("-15")
    return "CANCELLED"


def unseen(out: Path, log: Path, code_file: Path) -> str:
    code_file.write_text("0")
    return "COMPLETED"


@dataclass
class Scripted:
    """A scheduler: each time that a job is given, it ends as the next of its list says."""

    out: Path
    ends: dict[str, list[Ends]]
    place: str = "a script"
    at_once: int | None = None
    given: list[str] = field(default_factory=list)
    words: dict[str, str | None] = field(default_factory=dict)
    most: int = 0

    def submit(self, words: tuple[str, ...], log: Path, code_file: Path) -> str:
        (name,) = words
        self.given.append(name)
        number = f"{name}-{len(self.given)}"
        how = self.ends[name].pop(0) if self.ends.get(name) else done
        self.words[number] = how(self.out / name, log, code_file)
        self.most = max(self.most, sum(not (self.out / each).exists() for each in self.given))
        return number

    def ended(self, number: str) -> str | None:
        return self.words[number]

    def still_there(self, number: str) -> bool:
        return self.words.get(number, "gone") is None

    def leave(self, numbers: list[str]) -> str:
        return f"left alone: {' '.join(numbers)}"

    def close(self) -> None:
        pass


def job(name: str, *needs: str) -> Job:
    return Job(name, f"the {name} one", (name,), (name,), needs)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Scripted, Dispatch]]:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setattr(module, "_LATE", 0.01)

    def run(jobs: list[Job], retries: int = 2, at_once: int | None = None, **ends: list[Ends]) -> tuple:
        (tmp_path / "launch").mkdir(exist_ok=True)
        there = Scripted(tmp_path, ends)
        made = Dispatch(
            tmp_path / "launch", there, Console(), lambda job: (tmp_path / job.name).exists(), retries, at_once
        )
        made.run(jobs)
        return there, made

    return run


def test_a_lost_job_is_given_again_as_often_as_is_said_and_then_named(run: Callable) -> None:
    there, found = run([job("a"), job("b")], a=[killed, killed, done], b=[killed, killed, killed, done])
    assert sorted(there.given) == [*"aaabbb"]
    (failure,) = found.failures
    assert (failure.job.name, failure.why) == ("b", "was lost 3 times, now by OUT_OF_MEMORY")
    assert failure.log.name == "b.log"


def test_bad_input_and_a_cancelled_job_are_not_tried_again(run: Callable) -> None:
    there, found = run([job("a"), job("b"), job("c")], a=[refused], b=[cancelled], c=[cancelled_early])
    assert there.given == ["a", "b", "c"]
    assert [each.why for each in found.failures] == ["rank is 0, expected 1 or more", *["was cancelled"] * 2]


def test_a_job_begins_when_what_it_needs_is_done_and_not_at_all_where_that_failed(run: Callable) -> None:
    there, found = run([job("z", "a"), job("y", "b"), job("a"), job("b")], a=[killed, done], b=[refused])
    assert there.given == ["a", "b", "a", "z"]
    assert [failure.job.name for failure in found.failures] == ["b", "y"]
    assert found.failures[1].why == "needs the b one, which failed"


def test_no_more_jobs_are_open_than_is_said(run: Callable) -> None:
    assert run([job(name) for name in "abcdef"], at_once=2)[0].most <= 2


def test_a_job_that_ends_well_and_left_nothing_is_no_success(run: Callable) -> None:
    _, found = run([job("a")], a=[unseen])
    assert "ended, but left nothing here: is " in found.failures[0].why


def test_asked_to_stop_it_says_what_becomes_of_jobs_and_a_later_command_waits_for_them(
    run: Callable, tmp_path: Path
) -> None:
    def goes_on(out: Path, log: Path, code_file: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="left alone: a-1") as stopped:
        run([job("a")], a=[goes_on])
    assert stopped.value.exit_code == 130
    there = Scripted(tmp_path, {}, words={"a-1": None})
    later = Dispatch(tmp_path / "launch", there, Console(), lambda job: (tmp_path / job.name).exists(), 2)
    (found,) = later.earlier()
    assert (found.job, found.number) == (job("a"), "a-1")
    there.words["a-1"] = done(tmp_path / "a", found.log, found.code_file)
    assert later.run([]) == []
    assert there.given == []


def test_a_job_that_is_gone_is_not_waited_for(run: Callable, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run([job("a")], a=[lambda *paths: os.kill(os.getpid(), signal.SIGINT)])
    assert Dispatch(tmp_path / "launch", Scripted(tmp_path, {}), Console(), lambda job: False, 2).earlier() == []
    assert not list((tmp_path / "launch").glob("*.json"))
