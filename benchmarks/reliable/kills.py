"""kill -9 at random moments, again and again, and what the resumed run then ends with."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from reliable import forks
from reliable.work import Job, Place, differs, left, settled
from saelora.files import MARK
from saelora.train.checkpoint import load_checkpoint

GO_ON = 0.4  # probability of one more kill in the resumed run
MOST = 4  # kills of one run


def reference(place: Place, job: Job) -> None:
    """An uninterrupted run, and how long and how much it writes.

    Raises:
        RuntimeError: it does not end well, so that nothing can be said of the job.
    """
    out = place.root / "references" / job.name.replace(" ", "_")
    shutil.rmtree(out, ignore_errors=True)
    ended = forks.run(job.argv(out), place.root / "scratch", watched=out)
    if ended.code != 0:
        raise RuntimeError(f"{job.name} does not run: {ended.err.strip()[-500:]}")
    place.references[job.name] = out
    place.operations[job.name], place.seconds[job.name] = ended.operations, ended.seconds


def trial(place: Place, job: Job, seed: str) -> dict[str, Any]:
    """One run that is killed once or more, each time resumed, and at last let go to its end.

    Returns:
        "kills": by mode; "faults": (kind, words) of what was lost, taken for whole, or ended otherwise.
    """
    draw = random.Random(seed)
    out, whole = place.root / "trial", place.references[job.name]
    shutil.rmtree(out, ignore_errors=True)
    kills: list[str] = []
    faults: list[tuple[str, str]] = []
    saved: dict[str, int] = {}
    while True:
        again = bool(kills)
        more = len(kills) < MOST and (not kills or draw.random() < GO_ON)
        kill = forks.a_kill(draw, place.operations[job.name], place.seconds[job.name]) if more else None
        ended = forks.run(job.argv(out, again=again), place.root / "scratch", watched=out, kill=kill)
        faults += begun_before(ended, saved)
        if ended.code is not None:
            break
        if kill is None:
            faults.append(("stuck", "the resumed run took longer than its limit"))
            break
        kills.append(kill.mode)
        faults += [("half", words) for words in _half_written(job, out, whole)]
        saved = checkpoints(out)
    if ended.code not in (0, None):
        faults.append(("refused", f"exit code {ended.code}: {ended.err.strip()[-300:]}"))
    elif ended.code == 0:
        faults += [("lost", words) for words in _never_taken_up(saved, ended)]
        faults += [("differs", words) for words in _differences(out, whole)]
    return {"kills": kills, "faults": faults, "seconds": ended.seconds}


def _half_written(job: Job, out: Path, whole: Path) -> list[str]:
    """Files that a reader would take for finished and that are not what they are in the reference."""
    return differs(out, whole, [name for name in left(out) if settled(name, job)])


def _differences(out: Path, whole: Path) -> list[str]:
    ours, theirs = left(out), left(whole)
    told = [f"{name}: missing" for name in theirs if name not in ours]
    told += [f"{path.relative_to(out)}: left over" for path in out.rglob(f"{MARK}*")]
    return told + differs(out, whole, list(ours))


def checkpoints(out: Path) -> dict[str, int]:
    """The newest good checkpoint's step, by the folder of its loop, of work that is not finished yet."""
    found = {}
    for folder in out.rglob("checkpoints"):
        if MARK in str(folder.relative_to(out)) or _finished(folder.parent, out):
            continue
        newest = load_checkpoint(folder)
        if newest is not None:
            found[str(folder.parent)] = int(newest[1]["step"])
    return found


def _finished(loop: Path, out: Path) -> bool:
    """Whether the results of a loop are on disk, so that it is not to be taken up again."""
    if loop == out:
        return (out / "results.json").exists() or (out / "training.json").exists()
    if loop.parent.name == "groups":
        names = json.loads((loop / "points.json").read_text())
        return (loop / "rows.json").exists() or all((out / "points" / f"{name}.json").exists() for name in names)
    if loop.name.startswith("tuning-"):
        return any((out / "tuning").glob("*.json"))
    return (out / "runs" / f"{loop.name}.json").exists()


def begun_before(ended: forks.Ended, saved: dict[str, int]) -> list[tuple[str, str]]:
    """Loops that began before the checkpoint that was there; as faults."""
    return [
        ("lost", f"{Path(loop).name}: begun at step {step}, a checkpoint of step {saved[loop]} was there")
        for loop, step in ended.loops.items()
        if step < saved.get(loop, 0)
    ]


def _never_taken_up(saved: dict[str, int], ended: forks.Ended) -> list[str]:
    return [f"{Path(loop).name}: its checkpoint was not taken up" for loop in saved if loop not in ended.loops]
