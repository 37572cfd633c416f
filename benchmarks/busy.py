"""Training and evaluation beside a program that keeps half of the cores busy: what is left of the idle machine's speed.

    python benchmarks/busy.py --json benchmarks/results/busy.json

Two processes do the same work on the same rows, one with OpenMP as it comes (its threads spin while they wait), one as
`saelora` has it (they spin briefly while others need the cores). They take turns, on the idle machine and beside a busy
loop for every second core, round by round. Reported, each with its spread:
  kept.WORK.ARM        tokens a second beside the busy loop / idle, of this arm
  watched_idle.WORK    what watching costs on an idle machine: tokens a second watched / as it comes
  watched_busy.WORK    what it gains beside the busy loop: the same ratio there
Losses of both are compared to the last digit. Nothing else should run meanwhile: the load before the start is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import setting as settings
from measure import ratios, seconds, summary

from saelora.manifest import environment, write_json
from saelora.openmp import VARIABLES, Watch

WORK = ("training", "evaluation")
ARMS: dict[str, list[str]] = {"spinning": [], "watched": ["--watch"]}
MACHINE = ("idle", "busy")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_options(parser)
    parser.set_defaults(repeats=5)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="training steps of one row, in each turn")
    parser.add_argument("--eval-rows", type=int, default=4, help="rows evaluated in each turn")
    parser.add_argument("--settle", type=float, default=10, help="seconds until a change of what runs is noticed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.worker:
        work(args)
        return {}
    inputs = {k: v for k, v in vars(args).items() if k not in ("json", "worker", "watch")}
    inputs |= {"busy_loops": max(1, (os.cpu_count() or 2) // 2), "load_before": os.getloadavg()[0]}
    out: dict[str, Any] = {"inputs": inputs, "environment": environment()}
    print(out["inputs"], out["environment"], sep="\n", flush=True)
    out |= figures(measured(args, inputs["busy_loops"]), args)
    for name in ("kept", "watched_idle", "watched_busy"):
        for key, value in _flat(name, out[name]):
            low, high = value["spread"]
            print(f"{key:28s} {value['median']:.3f}  ({low:.3f} to {high:.3f})")
    print(f"largest difference of losses: {out['largest_loss_difference']}")
    if args.json:
        write_json(args.json, out)
    return out


Taken = dict[tuple[str, str, str], list[dict[str, float]]]  # (work, arm, machine) -> rounds


def measured(args: argparse.Namespace, n_loops: int) -> Taken:
    """Seconds and losses of every turn; a first round is dropped."""
    taken: Taken = {}
    with ExitStack() as stack:
        workers = {arm: stack.enter_context(worker(args, extra)) for arm, extra in ARMS.items()}
        for round_ in range(args.repeats + 1):
            for machine in MACHINE:
                with busy_loops(n_loops if machine == "busy" else 0):
                    time.sleep(args.settle if machine == "busy" else 0)
                    for name in WORK:
                        for arm in ARMS if round_ % 2 else reversed(ARMS):
                            # a watcher takes the other arm's turn, just over, for a busy machine
                            time.sleep(args.settle if machine == "idle" else 0)
                            found = ask(workers[arm], name)
                            if round_:
                                taken.setdefault((name, arm, machine), []).append(found)
    return taken


def figures(taken: Taken, args: argparse.Namespace) -> dict[str, Any]:
    """Ratios of every kind, round by round, and the speeds that they are of."""
    n_tokens = {"training": args.steps * args.context, "evaluation": args.eval_rows * args.context}
    spent = {key: [turn["seconds"] for turn in turns] for key, turns in taken.items()}
    losses = [
        abs(a["loss"] - b["loss"])
        for name in WORK
        for machine in MACHINE
        for a, b in zip(taken[name, "spinning", machine], taken[name, "watched", machine], strict=True)
    ]
    watched = {
        machine: {w: ratios(spent[w, "spinning", machine], spent[w, "watched", machine]) for w in WORK}
        for machine in MACHINE
    }
    return {
        "kept": {w: {a: ratios(spent[w, a, "idle"], spent[w, a, "busy"]) for a in ARMS} for w in WORK},
        "watched_idle": watched["idle"],
        "watched_busy": watched["busy"],
        "largest_loss_difference": max(losses),
        "tokens_per_second": {
            w: {a: {m: summary([n_tokens[w] / s for s in spent[w, a, m]]) for m in MACHINE} for a in ARMS} for w in WORK
        },
    }


@contextmanager
def busy_loops(n: int) -> Iterator[None]:
    """So many other processes that do nothing but keep a core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def worker(args: argparse.Namespace, extra: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process of this script that works when it is asked to; ``extra``: further flags."""
    given = {k: v for k, v in vars(args).items() if k not in ("json", "worker", "watch") and v is not None}
    flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    clean = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "OMP_NUM_THREADS")}
    command = [sys.executable, __file__, "--worker", *extra, *flags]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=clean, **pipes) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: "subprocess.Popen[str]", name: str) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(name, file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def work(args: argparse.Namespace) -> None:
    """Read what to do from stdin, line by line; write seconds and loss of each turn to stdout."""
    import torch

    from saelora.evals.loss import evaluate_loss

    torch.manual_seed(0)
    if args.watch:
        Watch().start()
    # the first rows are evaluated again and again, the others trained on in turn
    setting = settings.make(args, args.eval_rows + args.steps * 2 * (args.repeats + 1), args.context)
    heldout, batches = setting.rows[: args.eval_rows], iter(setting.rows[args.eval_rows :].split(1))
    ours, saes = settings.Ours(setting), {setting.hookpoint: settings.our_sae(setting.sae, setting.device)}

    def training() -> float:
        return sum(float(ours.step(next(batches))["loss"]) for _ in range(args.steps))

    def evaluation() -> float:
        found = evaluate_loss(setting.model, saes, setting.token_mask, heldout, arms=["sae"], check=False)
        return found["ce_sae"]

    for line in sys.stdin:
        loss: list[float] = []
        call = {"training": training, "evaluation": evaluation}[line.strip()]
        spent = seconds(lambda call=call, loss=loss: loss.append(call()), setting.device)  # type: ignore[misc]
        print(json.dumps({"seconds": spent, "loss": loss[0]}), flush=True)


def _flat(name: str, value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "median" in value:
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(f"{name}.{key}", inner)


if __name__ == "__main__":
    main()
