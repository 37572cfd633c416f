"""How long a command takes to say something: --help, an error in its options, a run's first line, its first token.

    python benchmarks/start_up.py --json benchmarks/results/start_up.json
    python benchmarks/start_up.py --commands --run RUN [--against SRC] --json benchmarks/results/first_token.json

Every command is started as a user would, `python -m saelora ...`, round by round; reported are medians of wall-clock
seconds with their spread. The first line of a run is timed to its arrival, then the run is killed. The bounds are 1.0 s
for --help, 1.5 s for an error in the options, 3 s for the first line; what exceeds its bound is marked.

With --run, ``generate`` is timed to its first text too, in wall-clock seconds and in those of CPU that the process has
had by then (Linux), beside the bare import of the libraries that it cannot do without. --against names the source
folder of another commit, whose generate takes its turn in each round.
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

from measure import ratios, summary

from saelora.cli import JOBS
from saelora.manifest import environment, write_json

ROOT = Path(__file__).parents[1]
LIBRARIES = "import torch, peft, transformers.models.llama.modeling_llama; print('these\\nare there', flush=True)"
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
    parser.add_argument("--commands", nargs="*", default=[*JOBS], help="of these, or none")
    parser.add_argument("--run", help="a finished run: time generate to its first token")
    parser.add_argument("--against", type=Path, metavar="SRC", help="another source folder, for its first token")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if unknown := set(args.commands) - set(JOBS):
        parser.error(f"no command {min(unknown)}: expected some of {', '.join(JOBS)}")
    inputs = {"repeats": args.repeats, "commands": args.commands, "load_before": os.getloadavg()[0]}
    inputs["cores"] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
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
    medians = {kind: [found["median"] for found in each.values()] for kind, each in out["seconds"].items()}
    out["slowest"] = {kind: max(each, default=None) for kind, each in medians.items()}
    for kind, bound in BOUNDS.items():
        for name, found in out["seconds"][kind].items():
            low, high = found["spread"]
            over = f"  over {bound} s" if found["median"] > bound else ""
            print(f"{kind:11s} {name:13s} {found['median']:.2f} s  ({low:.2f} to {high:.2f}){over}")
    if args.run:
        out["first_token"] = first_tokens(args.run, args.against, args.repeats)
    if args.json:
        write_json(args.json, out)
    return out


def first_tokens(run: str, against: Path | None, repeats: int) -> dict[str, Any]:
    """Wall-clock and CPU seconds to the first token, of this source and of another, and of the bare import, in turn."""
    generate = ["-m", "saelora", "generate", run, "Fellow citizens,", "--max-new-tokens", "4"]
    arms = {"libraries": (["-c", LIBRARIES], ROOT / "src"), "now": (generate, ROOT / "src")}
    if against is not None:
        arms["before"] = (generate, against.resolve())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for round_ in range(repeats + 1):
        for name, (words, source) in arms.items():
            spent = first_text(words, source)
            if round_:
                taken[name].append(spent)
    found: dict[str, Any] = {"libraries_are": LIBRARIES}
    for name, spent in taken.items():
        wall, cpu = zip(*spent, strict=True)
        found[name] = {"wall": summary(wall), "cpu": summary(cpu)}
        print(f"first token {name:13s} wall {told(found[name]['wall'])}, CPU {told(found[name]['cpu'])}", flush=True)
    if against is not None:
        for kind in ("wall", "cpu"):
            found[f"{kind}_now_over_before"] = ratios(found["now"][kind]["values"], found["before"][kind]["values"])
            print(f"{kind}, now over before: {told(found[f'{kind}_now_over_before'])}")
    return found


def told(found: dict[str, Any]) -> str:
    return f"{found['median']:.2f} ({found['spread'][0]:.2f} to {found['spread'][1]:.2f})"


def first_text(words: list[str], source: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds until a process has begun the second line on stdout: the first is a heading."""
    env = {**os.environ, "PYTHONPATH": str(source)}
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], stdout=-1, stderr=-1, env=env, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline(), process.stdout.read(1)
        wall, cpu = time.perf_counter() - started, cpu_seconds(process.pid)
        process.kill()
        error = process.stderr.read().decode()
    if not all(said):
        raise SystemExit(f"python {' '.join(words)} wrote {said!r}; {error}")
    return wall, cpu


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has had with all its threads; 0 where that cannot be told (not on Linux)."""
    file = Path(f"/proc/{pid}/stat")
    if not file.exists():
        return 0.0
    user, system = file.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


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
