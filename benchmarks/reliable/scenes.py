"""Surroundings that go wrong: full disks, folders without permission, two writers, edited files, clocks, memory."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import workspace as ws
from reliable import forks, grammar, kills
from reliable.work import Job, Place, differs, left

Faults = list[tuple[str, str]]
Tried = Iterator[tuple[str, Faults]]
NOBODY = 65534
LASTING = ("adapt", "train-sae", "sweep", "compare")  # commands that are run beside another
EDITS = 12  # of each kind of file


def _reference(place: Place, *names: str) -> None:
    for name in ("adapt", *names):
        if name not in place.references:
            kills.reference(place, place.jobs[name])


def _wrong(faults: Faults) -> Faults:
    return [("wrong", f"{kind}: {words}") for kind, words in faults]


def _as_reference(ended: forks.Ended, job: Job, out: Path, place: Place) -> Faults:
    """What is wrong with a run that was to end as the uninterrupted one did."""
    if ended.code != 0:
        return [("wrong", f"exit code {ended.code}: {ended.err.strip()[-300:]}")]
    return [("wrong", words) for words in differs(out, place.references[job.name], list(left(out)))]


# disks


def full_disk(place: Place) -> Tried:
    """Too little room, at sizes from nothing to almost enough; then room is made and the run resumed."""
    _reference(place, *LASTING, "adapt lora+sae")
    for name in (*LASTING, "adapt lora+sae"):
        job = place.jobs[name]
        for kilobytes in (40, 200, 420, 700, 1000):
            with _small(place.root / "disk", kilobytes) as grow:
                if grow is None:
                    yield f"{name}: no file system can be mounted here", []
                    continue
                out = place.root / "disk" / "out"
                ended = forks.run(job.argv(out), place.root / "scratch")
                tried = f"{name} with {kilobytes} kB"
                yield tried, [] if ended.code == 0 else _wrong(forks.complaint(ended))
                grow()
                again = ("--resume",) if out.exists() else ()
                ended = forks.run([*job.argv(out), *again], place.root / "scratch")
                yield f"{tried}, resumed with room", _as_reference(ended, job, out, place)


@contextmanager
def _small(where: Path, kilobytes: int) -> Iterator[Callable[[], None] | None]:
    """A file system of that size, and what makes it large; None where none can be mounted."""
    where.mkdir(exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(where)]
    if os.getuid() != 0 or subprocess.run(options, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=100m", str(where)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def limited_files(place: Place) -> Tried:
    """A limit on the size of files (ulimit -f): what a quota looks like to one writer."""
    _reference(place, *LASTING)
    for name in LASTING:
        for size in (500, 4_000, 20_000, 60_000):
            out = _fresh(place)

            def limit(size: int = size) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

            ended = forks.run(place.jobs[name].argv(out), place.root / "scratch", setup=limit)
            yield f"{name}, files of {size} bytes", [] if ended.code == 0 else _wrong(forks.complaint(ended))


def _fresh(place: Place) -> Path:
    out = place.root / "scene"
    shutil.rmtree(out, ignore_errors=True)
    return out


# permissions


def no_permission(place: Place) -> Tried:
    """Folders that may be read and not written: of the output, of an evaluation, of the cache."""
    _reference(place)
    for path in (place.root, *place.space.root.rglob("*"), *place.references["adapt"].rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    locked = place.root / "locked"
    run = place.references["adapt"]
    shutil.rmtree(locked, ignore_errors=True)
    shutil.copytree(run, locked / "run")
    for path in (locked, *locked.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for name, job in place.jobs.items():
            if name != "evaluate --parts":
                yield from _refused(place, name, job.argv(locked / "out"), locked)
        argv = ["evaluate", "--adapter", str(locked / "run"), "--parts", "tokens", "--device", "cpu", "--quiet"]
        yield from _refused(place, "evaluate into the run", argv, locked)
        yield from _refused(place, "evaluate into a file", [*argv, "--out", str(locked / "x.json")], locked)
        yield from _refused(place, "report", ["report", str(locked / "run"), "--quiet"], locked)
        for flag in ("--resume", "--overwrite"):
            words = [*place.jobs["adapt"].words(locked / "run"), "--seed", "1", flag, "--quiet"]
            yield from _refused(place, f"adapt {flag} on it", words, locked)
    finally:
        for path in (locked, *locked.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def _refused(place: Place, tried: str, argv: list[str], kept: Path) -> Tried:
    before = ws.files_in(kept)
    ended = forks.run(argv, place.root / "scratch", setup=_be_nobody)
    faults = _wrong(forks.complaint(ended))
    yield tried, faults + ([] if ws.files_in(kept) == before else [("wrong", "something there has changed")])


def _be_nobody() -> None:
    """An ordinary user, to whom permissions apply; the cache is then not theirs either."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


# two writers


def two_runs(place: Place) -> Tried:
    """A second run into the folder of a first: refused, whatever its flags, and the first ends as if alone."""
    _reference(place, *LASTING)
    for name in LASTING:
        job, out = place.jobs[name], _fresh(place)
        first = forks.start(job.argv(out), place.root / "scratch" / "first", setup=_slow)
        _until(lambda out=out: any(out.rglob("metrics.jsonl")))
        seconds = {}
        for flag in ("plain", "--resume", "--overwrite"):
            words = [*job.argv(out), *([] if flag == "plain" else [flag])]
            seconds[flag] = forks.run(words, place.root / "scratch")
        ended = first.wait()  # before anything is told: nobody is left behind where the scene is broken off
        for flag, second in seconds.items():
            yield f"{name}, second {flag}", _wrong(forks.complaint(second))
        yield f"{name}, first beside them", _as_reference(ended, job, out, place)
    for name in LASTING:
        job, out = place.jobs[name], _fresh(place)
        both = [forks.start(job.argv(out), place.root / "scratch" / side) for side in ("first", "second")]
        ended = [one.wait() for one in both]
        won = [one for one in ended if one.code == 0]
        faults: Faults = [] if len(won) == 1 else [("wrong", f"exit codes {[one.code for one in ended]}")]
        for one in ended:
            faults += _wrong(forks.complaint(one)) if one.code != 0 else _as_reference(one, job, out, place)
        yield f"{name}, both at once", faults


def _slow() -> None:
    """Every step takes a fifth of a second longer."""
    from saelora.train.loop import Loop

    step = Loop._step

    def slow(self: Any) -> Any:
        time.sleep(0.2)
        return step(self)

    Loop._step = slow  # type: ignore[method-assign]


def _until(condition: Callable[[], bool], limit: float = 120.0) -> None:
    ends = time.monotonic() + limit
    while not condition() and time.monotonic() < ends:
        time.sleep(0.02)


# edited files


def edited(place: Place) -> Tried:
    """Files of finished runs with a key gone, renamed, or of another kind: one line, or no harm; never a traceback."""
    _reference(place, "sweep", "compare", "adapt lora+sae")
    copied = place.root / "edited"
    adapted = {"saelora.json": _evaluating, "results.json": _resumed_adapt, "config.yaml": _resumed_adapt}
    of_job: dict[str, dict[str, Callable[[Path, Place], list[str]]]] = {
        "adapt": {**adapted, "saelora.json ": _reporting, "results.json ": _reporting},
        "adapt lora+sae": {"saelora.json": _evaluating},
        "sweep": {"points/*.json": lambda out, place: place.jobs["sweep"].argv(out, again=True)},
        "compare": {"runs/*.json": lambda out, place: place.jobs["compare"].argv(out, again=True)},
    }
    for name, files in of_job.items():
        for pattern, argv in files.items():
            for number in range(EDITS):
                draw = random.Random(f"{name}/{pattern}/{number}")
                shutil.rmtree(copied, ignore_errors=True)
                shutil.copytree(place.references[name], copied)
                path = draw.choice(sorted(copied.glob(pattern.strip())))
                if number == 0:
                    grammar.cut(draw, path)
                elif path.suffix == ".json":
                    grammar.respell_json(draw, path)
                else:
                    grammar.break_text(draw, path)
                said = path.read_text()
                ended = forks.run(argv(copied, place), place.root / "scratch")
                faults = [] if ended.code == 0 else _wrong(forks.complaint(ended))
                changed = ended.code == 2 and path.read_text() != said
                yield f"{name}: {pattern} {number}", faults + ([("wrong", "it was rewritten")] if changed else [])


def _evaluating(out: Path, place: Place) -> list[str]:
    few = ["--eval-tokens", str(2 * ws.CONTEXT)]
    return ["evaluate", "--adapter", str(out), "--parts", "tokens", "--device", "cpu", *few, "--quiet"]


def _reporting(out: Path, place: Place) -> list[str]:
    return ["report", str(out), "--quiet"]


def _resumed_adapt(out: Path, place: Place) -> list[str]:
    return [*place.jobs["adapt"].argv(out), "--resume"]


# clocks


def clock(place: Place) -> Tried:
    """A run that is killed, then goes on a year earlier, among files of the future."""
    _reference(place, *LASTING)
    for name in LASTING:
        job, out = place.jobs[name], _fresh(place)
        kill = forks.Kill("at", max(1, place.operations[name] * 2 // 3))
        forks.run(job.argv(out), place.root / "scratch", watched=out, kill=kill)
        saved = kills.checkpoints(out)
        ahead = time.time() + 400 * 86_400
        for number, path in enumerate(sorted(out.rglob("*"), reverse=True)):
            with suppress(OSError):
                os.utime(path, (ahead - number, ahead - number))
        ended = forks.run(job.argv(out, again=True), place.root / "scratch", setup=_a_year_ago)
        lost = [("wrong", words) for _, words in kills.begun_before(ended, saved)]
        yield name, lost + _as_reference(ended, job, out, place)


def _a_year_ago() -> None:
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - 365 * 86_400
    time.time_ns = lambda: now_ns() - 365 * 86_400 * 10**9


# memory


def memory(place: Place) -> Tried:
    """Limits on memory and on the address space, from far too low to plenty: in pieces, refused, or as ever."""
    out = _fresh(place)
    words = [*place.jobs["adapt"].words(out), "--batch-rows", "64", "--dropout", "0", "--tokens", str(128 * ws.CONTEXT)]
    ended = forks.run([*words, "--quiet"], place.root / "scratch")
    whole = json.loads((out / "results.json").read_text()) if ended.code == 0 else {}
    for limit in (_own_limit, _address_space):
        for kilobytes in (0, 4_000, 16_000, *range(20_000, 76_000, 4_000), 100_000, 2_000_000):
            out = _fresh(place)
            ended = forks.run(words, place.root / "scratch", setup=lambda limit=limit, n=kilobytes: limit(n * 1024))
            tried = f"{limit.__name__[1:]}, {kilobytes} kB more"
            yield tried, _ended_in_pieces(ended, out, whole) if ended.code == 0 else _wrong(_last_line(ended))


def _ended_in_pieces(ended: forks.Ended, out: Path, whole: dict[str, Any]) -> Faults:
    """A run that did its steps in pieces says so and ends near the whole one; any other ends as it did."""
    found = json.loads((out / "results.json").read_text())
    in_pieces = found.get("rows_at_once") is not None
    faults: Faults = [] if in_pieces == ("rows at a time" in ended.err) else [("wrong", "rows at a time: unsaid")]
    near = 1e-3 if in_pieces else 0.0
    same = abs(found["ce_adapted"] - whole["ce_adapted"]) <= near
    return faults if same else [*faults, ("wrong", f"ce {found['ce_adapted']}, whole {whole['ce_adapted']}")]


def _last_line(ended: forks.Ended) -> Faults:
    """``complaint``, of a command that may say what it is doing before.

    Without memory a native library, or the loader, ends the process where it stands, which nobody could catch: Rust by
    abort in more words than one, the loader by 127.
    """
    if ended.code == -signal.SIGABRT and "Traceback" not in ended.err:
        return []
    if ended.code == 127 and "cannot allocate memory for thread-local data" in ended.err:
        return []
    last = "".join(ended.err.splitlines(keepends=True)[-1:])
    kept = last if "Traceback" not in ended.err else ended.err
    return forks.complaint(forks.Ended(ended.code, ended.out, kept, ended.seconds))


def _own_limit(n_bytes: int) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    os.environ["SAELORA_MEMORY"] = str(held + n_bytes)


def _address_space(n_bytes: int) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


SCENES: dict[str, Callable[[Place], Tried]] = {
    "full disk": full_disk,
    "limited files": limited_files,
    "no permission": no_permission,
    "two runs": two_runs,
    "edited files": edited,
    "clock set back": clock,
    "little memory": memory,
}
