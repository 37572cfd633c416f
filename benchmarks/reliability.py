"""kill -9, bad input, full disks: what is lost, what is half-written, what ends in a traceback.

    python benchmarks/reliability.py --minutes 60 --json benchmarks/results/reliability.json
    python benchmarks/reliability.py --minutes 3                  # the quick form, in CI
    python benchmarks/reliability.py --case "kills/adapt/17"      # one case again, as every fault names its own

On a tiny model (a llama of 4 layers, tests/helpers/workspace.py), every command in a process of its own:
  kills   kill -9 at random moments, two thirds of them at or just after the beginning of a write, of each training
          command, sweep, compare and evaluate --parts; resumed, often killed again, and compared with an uninterrupted
          run: weights bit for bit, figures, files
  inputs  bad options, recipes, SAE folders, models, GGUF files, adapters, text: each is to end with exit code 2, one
          line, nothing written
  scenes  full disk, folder without permission, two runs into one folder, a manifest edited by hand, clock set back,
          too little memory
Cases are drawn from --seed and their number, so that they are the same wherever and in whatever order they are run;
only a kill "after" or at a "time" also hangs on the machine's speed.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliable import forks, inputs, kills, scenes
from reliable.work import Place, make_jobs

LEAST_INPUTS, LEAST_KILLS = 1_000, 100  # of a full run
FULL_MINUTES = 30.0
SHARE = {"scenes": 0.35, "inputs": 0.35}  # of the time that is left when they begin


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["kills", "inputs", "scenes"], action="append", help="repeatable")
    parser.add_argument("--case", help="KIND/NAME/NUMBER of one case, to run it again")
    parser.add_argument("--keep", type=Path, help="folder to work in, and to leave as it is; default: a temporary one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    root = args.keep or Path(tempfile.mkdtemp(prefix="reliability-"))
    os.environ["SAELORA_CACHE"] = str(root / "cache")
    try:
        found = Bench(args, root).run()
    finally:
        if args.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    if args.json:
        from saelora.manifest import write_json

        write_json(args.json, found)
    return found


class Bench:
    """Runs cases for as long as there is time, and counts what came of them."""

    def __init__(self, args: argparse.Namespace, root: Path):
        self.args, self.root = args, root
        self.began = time.monotonic()
        self.ends = self.began + 60 * args.minutes
        self.faults: list[dict[str, str]] = []
        self.kinds = args.only or ["scenes", "inputs", "kills"]
        if args.case:
            self.kinds = [args.case.split("/")[0]]

    def run(self) -> dict[str, Any]:
        place = self._prepare()
        out: dict[str, Any] = {"options": {"minutes": self.args.minutes, "seed": self.args.seed}}
        for kind in self.kinds:
            started = time.monotonic()
            out[kind] = getattr(self, f"_{kind}")(place)
            out[kind]["seconds"] = round(time.monotonic() - started, 1)
        from saelora.manifest import environment

        out |= {"faults": self.faults, "minutes_taken": round((time.monotonic() - self.began) / 60, 2)}
        out |= {"environment": environment()}
        print("\n" + "\n".join(table(out)), flush=True)
        return out

    def _prepare(self) -> Place:
        """Everything imported, one thread, the workspace made in a fork of its own."""
        import torch

        torch.set_num_threads(1)
        forks.preload()
        import workspace as ws

        made = self.root / "workspace"
        if not (made / "sae").exists():
            apart(lambda: ws.make_workspace(made))
        assert not forks.threads(), f"threads {forks.threads()} before a fork: a fork has only the one that forks"
        place = Place(self.root, ws.Workspace(made, made / "model", made / "text", made / "sae"))
        place.jobs = make_jobs(place)
        print(f"ready after {time.monotonic() - self.began:.0f} s, in {self.root}", flush=True)
        return place

    def _kills(self, place: Place) -> dict[str, Any]:
        names = [self.args.case.split("/")[1]] if self.args.case else list(place.jobs)
        for name in dict.fromkeys(["adapt", *names]):
            kills.reference(place, place.jobs[name])
        counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        for number, name in self._turns(names):
            found = kills.trial(place, place.jobs[name], f"{self.args.seed}/kills/{name}/{number}")
            counts[name].update(["runs", *found["kills"]])
            self._note(f"kills/{name}/{number}", found["faults"], counts[name])
        return {"by_command": {name: dict(count) for name, count in counts.items()}}

    def _turns(self, names: list[str]) -> Iterator[tuple[int, str]]:
        """Each name in turn with a number, until the time is over."""
        if self.args.case:
            yield int(self.args.case.split("/")[2]), names[0]
            return
        number = 0
        while time.monotonic() < self.ends:
            for name in names:
                if time.monotonic() < self.ends:
                    yield number, name
            number += 1

    def _inputs(self, place: Place) -> dict[str, Any]:
        spoil = inputs.Inputs(place)
        until = time.monotonic() + SHARE["inputs"] * max(0.0, self.ends - time.monotonic())
        counts: dict[str, Counter[str]] = {}
        number = int(self.args.case.split("/")[2]) if self.args.case else 0
        full = self.args.minutes >= FULL_MINUTES
        while True:
            name, refused, faults = spoil.case(f"{self.args.seed}/inputs/{number}", number)
            count = counts.setdefault(name, Counter())
            count.update(["runs", "refused" if refused else "accepted"])
            self._note(f"inputs/{name}/{number}", faults, count)
            number += 1
            enough = number >= LEAST_INPUTS or not full
            if self.args.case or (enough and time.monotonic() > until):
                return {"by_kind": {name: dict(count) for name, count in sorted(counts.items())}}

    def _scenes(self, place: Place) -> dict[str, Any]:
        counts: dict[str, Counter[str]] = {}
        share = SHARE["scenes"] * max(0.0, self.ends - time.monotonic()) / len(scenes.SCENES)
        whole = self.args.minutes >= FULL_MINUTES or self.args.case
        for name, scene in scenes.SCENES.items():
            if self.args.case and self.args.case.split("/")[1] != name:
                continue
            counts[name], until = Counter(), time.monotonic() + share
            for tried, faults in scene(place):
                counts[name].update(["runs"])
                self._note(f"scenes/{name}/0", [(kind, f"{tried}: {words}") for kind, words in faults], counts[name])
                if not whole and time.monotonic() > until:
                    break
        return {"by_scene": {name: dict(count) for name, count in counts.items()}}

    def _note(self, case: str, faults: list[tuple[str, str]], count: "Counter[str]") -> None:
        for kind, words in faults:
            count.update([kind])
            self.faults.append({"case": case, "kind": kind, "what": words})
            again = f'python benchmarks/reliability.py --seed {self.args.seed} --case "{case}"'
            print(f"FAULT {kind}: {words}\n      again: {again}", flush=True)


def apart(work: Callable[[], Any]) -> None:
    """Do something in a fork: what it imports, starts and holds ends with it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the tiny workspace could not be made")


_COLUMNS = {
    "kills": ("by_command", ("runs", "at", "after", "time", "lost", "half", "differs", "refused", "stuck")),
    "inputs": ("by_kind", ("runs", "refused", "accepted", "code", "traceback", "lines", "written")),
    "scenes": ("by_scene", ("runs", "wrong")),
}


def table(found: dict[str, Any]) -> list[str]:
    """What was tried, and what came of it."""
    lines = []
    for kind, (below, columns) in _COLUMNS.items():
        if kind not in found:
            continue
        rows = found[kind][below]
        total: Counter[str] = Counter()
        for counts in rows.values():
            total.update(counts)
        lines += ["", f"{kind:24s}" + "".join(f"{column:>10s}" for column in columns)]
        for name, counts in [*rows.items(), ("all", total)]:
            lines.append(f"{name:24s}" + "".join(f"{counts.get(column, 0):10d}" for column in columns))
    return [*lines, "", f"{len(found['faults'])} faults in {found['minutes_taken']} minutes"]


if __name__ == "__main__":
    sys.exit(1 if main()["faults"] else 0)
