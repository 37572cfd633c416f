"""Everything that is claimed of a GPU, measured on one in one call, stage by stage in order of worth.

    python benchmarks/gpu.py --minutes 8 --out DIR                 # random weights of every shape
    python benchmarks/gpu.py --minutes 8 --out DIR --model FILE    # the default model's .gguf for its stages
    python benchmarks/gpu.py --minutes 8 --out DIR --baseline CHECKOUT    # and steps by another version's code
    python benchmarks/gpu.py --tiny --out DIR                      # every stage, small, on a CPU too (two minutes)

Each stage writes DIR/NAME.json as it ends and has a limit of its own; a second call with the same --out does what is
not there yet. An arm that does not fit the memory takes fewer rows, or is left out, and its file says so under "notes".
Needs this checkout, torch, transformers, peft and sae-lens; trl's and Liger's losses are timed where installed.
"""

import argparse
import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import saelora  # noqa: F401
except ImportError:  # a checkout that nobody installed
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from gpu_stages import GOALS, STAGES, Job, Limit

from saelora.manifest import environment, read_json, source_commit, write_json
from saelora.models.loading import pick_device

GRACE = 15.0  # seconds over its limit after which a stage that does not look at the clock is stopped


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages together")
    parser.add_argument("--only", nargs="+", choices=[*STAGES], help="these stages alone")
    parser.add_argument("--again", action="store_true", help="measure stages that are there once more")
    parser.add_argument("--model", help="the default model's .gguf file, for the stages that run it")
    parser.add_argument("--data", help="text for the default options; else this checkout's own pages, which are few")
    parser.add_argument("--baseline", type=Path, help="another checkout, whose steps are timed too (git worktree add)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: shows that every stage runs, not how fast")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    device = pick_device(args.device)
    inputs = {"tiny": args.tiny, "model": args.model, "device": _name(device), "commit": source_commit()}
    inputs |= {"baseline": args.baseline and str(args.baseline)}
    print(inputs, environment(), sep="\n", flush=True)
    found: dict[str, Any] = {}
    for name in args.only or STAGES:
        file = args.out / f"{name}.json"
        if file.is_file() and not args.again and _same(read_json(file), inputs):
            found[name] = read_json(file)
            print(f"== {name}: there already")
            continue
        left = end - time.monotonic()
        if left < 5:
            print(f"== {name}: no time left; the same command goes on here")
            continue
        found[name] = run(name, Job(device, args.tiny, args.model, args.baseline, args.data), left, inputs, file)
    print("\n".join(table(found)), flush=True)
    return found


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _same(found: dict[str, Any], inputs: dict[str, Any]) -> bool:
    return bool(found["finished"] and found["inputs"] == inputs)


def run(name: str, job: Job, left: float, inputs: dict[str, Any], file: Path) -> dict[str, Any]:
    """One stage, in a limit of its own; its file is written whatever becomes of it."""
    stage, share = STAGES[name]
    limit = (
        left if job.tiny else min(left, max(5.0, share * 60))
    )  # tiny: however slow the machine, it is no measurement
    print(f"== {name}, at most {limit:.0f} s", flush=True)
    started = time.monotonic()
    job.begin(limit)
    out: dict[str, Any] = {"stage": name, "inputs": inputs, "environment": environment(), "finished": False}
    try:
        with _alarm(limit + GRACE):
            stage(job)
        out["finished"] = True
    except Limit:
        job.note(f"stopped at its limit of {limit:.0f} s: what is here was measured before")
    except Exception as error:
        job.note(f"failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        out["traceback"] = traceback.format_exc()
    out |= {"seconds_taken": time.monotonic() - started, "notes": job.notes, "found": job.found}
    write_json(file, out)
    job.free()
    print(f"   {out['seconds_taken']:.0f} s" + "".join(f"\n   note: {note}" for note in job.notes), flush=True)
    return out


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises Limit in the main thread if the block outlasts its limit by this much, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise Limit

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(found: dict[str, Any]) -> list[str]:
    """A line for each figure that has a goal: what was found, what is wanted."""
    lines = ["", f"{'figure':58s} {'found':>12s}  goal"]
    for stage, path, sign, goal, what in GOALS:
        value: Any = found.get(stage, {}).get("found", {})
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        value = value["median"] if isinstance(value, dict) else value
        shown = "not measured" if value is None else f"{value:.4g}"
        met = "" if value is None else "  met" if (value >= goal if sign == ">=" else value <= goal) else "  MISSED"
        lines.append(f"{what:58s} {shown:>12s}  {sign} {goal:g}{met}")
    return lines


if __name__ == "__main__":
    main()
