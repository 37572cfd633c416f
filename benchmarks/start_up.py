"""How long a command takes to say something: --help, an error in its options, a run's first line.

    python benchmarks/start_up.py --json benchmarks/results/start_up.json

Every command is started as a user would, `python -m saelora ...`, round by round; reported are medians of wall-clock
seconds with their spread. The first line of a run is timed to its arrival, then the run is killed. The bounds are 1.0 s
for --help, 1.5 s for an error in the options, 3 s for the first line; what exceeds its bound is marked.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import summary

from saelora.cli import JOBS
from saelora.manifest import environment, write_json

ROOT = Path(__file__).parents[1]
BOUNDS = {"help": 1.0, "error": 1.5, "first_line": 3.0}
ERRORS = {
    "adapt": "adapt --rnak 3",
    "finetune-sae": "finetune-sae m --sae s --data d --out o --warmup 2",
    "evaluate": "evaluate m --sae s --data d --parts nothing",
    "train-sae": "train-sae m --data d --out o --hookpoint layers.x",
    "sweep": f"sweep {ROOT}/recipes/smollm/rank.yaml --out o --set bsae.x=1",
    "compare": f"compare {ROOT}/recipes/smollm/timing.yaml --out o --only nobody",
    "report": "report nowhere",
    "demo": "demo --tokens many",
}
COMMON = "smollm2-135m-instruct --data sotu --tokens 1k --out"
SAE = "--sae smollm2-135m-instruct.layers.12.resid_post"
FIRST = {
    "demo": "demo --out {out}",
    "adapt": f"adapt {COMMON} {{out}} {SAE}",
    "finetune-sae": f"finetune-sae {COMMON} {{out}} {SAE}",
    "evaluate": f"evaluate smollm2-135m-instruct --data sotu {SAE}",
    "train-sae": f"train-sae {COMMON} {{out}} --hookpoint layers.12.resid_post",
    "sweep": f"sweep {ROOT}/recipes/smollm/rank.yaml --out {{out}}",
    "compare": f"compare {ROOT}/recipes/smollm/timing.yaml --out {{out}}",
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--commands", nargs="+", default=[*JOBS], choices=[*JOBS])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    inputs = {"repeats": args.repeats, "commands": args.commands, "load_before": os.getloadavg()[0]}
    out: dict[str, Any] = {"inputs": inputs, "environment": environment()}
    print(out["inputs"], out["environment"], sep="\n", flush=True)
    calls = calls_of(args.commands)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for round_ in range(args.repeats + 1):  # a first round is dropped: files come from the disk then
        for key, call in calls.items():
            spent = call()
            if round_:
                taken[key].append(spent)
    out["seconds"] = {kind: {name: summary(taken[k, name]) for k, name in taken if k == kind} for kind in BOUNDS}
    out["bounds"] = BOUNDS
    out["slowest"] = {kind: max(found["median"] for found in out["seconds"][kind].values()) for kind in BOUNDS}
    for kind, bound in BOUNDS.items():
        for name, found in out["seconds"][kind].items():
            low, high = found["spread"]
            over = f"  over {bound} s" if found["median"] > bound else ""
            print(f"{kind:11s} {name:13s} {found['median']:.2f} s  ({low:.2f} to {high:.2f}){over}")
    if args.json:
        write_json(args.json, out)
    return out


def calls_of(commands: list[str]) -> dict[tuple[str, str], Callable[[], float]]:
    """(kind, command) -> what takes the seconds that it returns."""
    calls: dict[tuple[str, str], Callable[[], float]] = {}
    for name in commands:
        calls["help", name] = lambda name=name: ended([name, "--help"], 0)  # type: ignore[misc]
        calls["error", name] = lambda name=name: ended(ERRORS[name].split(), 2)  # type: ignore[misc]
        if name in FIRST:
            calls["first_line", name] = lambda name=name: first_line(FIRST[name])  # type: ignore[misc]
    return calls


def ended(words: list[str], code: int) -> float:
    """Seconds until a command has ended with this code."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "saelora", *words], capture_output=True, text=True)
    spent = time.perf_counter() - started
    if done.returncode != code:
        raise SystemExit(f"saelora {' '.join(words)} ended with {done.returncode}, expected {code}: {done.stderr}")
    return spent


def first_line(command: str) -> float:
    """Seconds until a run has said something."""
    with tempfile.TemporaryDirectory() as folder:
        words = command.format(out=f"{folder}/out").split()
        started = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", "saelora", *words], stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            said = run.stderr.readline()
            spent = time.perf_counter() - started
            run.kill()
    if not said or said.startswith("saelora: "):
        raise SystemExit(f"saelora {command} began with {said!r}")
    return spent


if __name__ == "__main__":
    main()
