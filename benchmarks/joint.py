"""Adapter and SAE together: does a joint method end lower than the better of lora and finetune-sae at equal tokens?

    python benchmarks/joint.py --out DIR --seconds 190 --model FILE.gguf --data sotu.jsonl.gz    # on a GPU
    python benchmarks/joint.py --out DIR --seconds 1e9    # whatever the device and however long it takes

Three stages, all on one text in which no held-out document is trained on:
  choose     every method's rates (joint_arms.py), one seed, --choose-tokens, on held-out rows used for this alone
  ideas      each idea put on the best arm of lora, of finetune-sae and of joint, the same way
  compare    --budgets x --seeds: these three, each with the up to three ideas that helped it most, joint with its
             best one alone, and adapter with the whole SAE; measured on the held-out test rows
Arms of one seed see the same rows in the same order, from the same initial weights. All arms of a unit are trained in
one pass (joint_bank.py). DIR/UNIT.json is written as a unit ends; a unit that would not end before --seconds is not
begun; a second call with the same --out goes on, also in the middle of a unit. With --chosen the first two stages are
left out: the arms named there are compared, without ideas. DIR/summary.json: by budget, arm and
seed KL, and KL over the best of lora's and finetune-sae's, ideas included. First of all each kind of arm is trained
for a few steps both ways, in the bank and by the package's Distill alone (DIR/check.json).
"""

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

try:
    import saelora  # noqa: F401
except ImportError:  # a checkout that nobody installed
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from joint_arms import IDEAS, Arm, grids
from joint_bank import Bank, Lot, Student
from joint_check import check
from torch import Tensor

from saelora.assemble import VALIDATION_SEED, assemble, read_rows
from saelora.config import build
from saelora.core.partial import CleanPass
from saelora.errors import out_of_memory
from saelora.manifest import environment, read_json, source_commit, write_json
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.options import SplicedConfig

KEEP_EVERY = 180  # seconds between the writings of a unit's state
CHOICE_SEED = 100  # of rows and weights in the stages choose and ideas
RIVALS = ("lora", "sae")
METHODS = (*RIVALS, "joint")


class _Options(SplicedConfig):
    """Options of a benchmark"""


class OutOfTime(Exception):
    """There are no seconds left."""


@dataclass
class Clock:
    """What is left of --seconds, and how long a step of one arm has taken."""

    end: float
    pace: float = 0.0  # seconds a step of one arm
    measuring: float = 0.0  # seconds that measuring one arm took

    def left(self) -> float:
        return self.end - time.monotonic()

    def check(self) -> None:
        if self.left() < 0:
            raise OutOfTime

    def fits(self, n_steps: int, n_arms: int) -> bool:
        return 1.1 * n_arms * (n_steps * self.pace + self.measuring) < self.left()


@dataclass
class Held:
    """Held-out rows with their clean pass, and what the SAE costs there before anything is trained."""

    rows: Tensor
    cleans: list[CleanPass]
    spliced: dict[str, Any] = field(default_factory=dict)


@dataclass
class Kept:
    """A unit's state on disk, from which the next call goes on."""

    file: Path
    about: dict[str, Any]
    written: float = field(default_factory=time.monotonic)

    def write(self, students: Sequence[Student], losses: Sequence[Tensor], seconds: float) -> None:
        """Now and then, whole or not at all."""
        if time.monotonic() - self.written < KEEP_EVERY:
            return
        state = {"about": self.about, "losses": torch.stack(list(losses)), "seconds": seconds}
        state["students"] = [student.state_dict() for student in students]
        torch.save(state, partial := self.file.with_suffix(".part"))
        partial.replace(self.file)
        self.written = time.monotonic()

    def read(self, students: Sequence[Student], device: torch.device) -> tuple[list[Tensor], float]:
        """Losses by step, and seconds, of what an earlier call did of this unit."""
        if not self.file.is_file():
            return [], 0.0
        state = torch.load(self.file, map_location=device, weights_only=True)
        if state["about"] != self.about:
            return [], 0.0
        for student, saved in zip(students, state["students"], strict=True):
            student.load_state_dict(saved)
        print(f"   goes on from step {len(state['losses'])}", flush=True)
        return list(state["losses"].unbind()), state["seconds"]


class Study:
    """The setting, and the one way to train and measure a unit's arms."""

    def __init__(self, args: argparse.Namespace, clock: Clock):
        self.args, self.clock = args, clock
        options: dict[str, Any] = {key: getattr(args, key) for key in ("model", "data", "device", "dtype", "context")}
        options |= {"sae": [args.sae], "validation_fraction": args.validation_fraction, "batch_rows": args.batch_rows}
        self.config = build(_Options, options)
        self.assembled = assemble(self.config)
        self.bank = Bank(self.assembled)
        self.at_once: int = args.at_once
        self._rows: dict[int, Tensor] = {}
        n_test = args.test_tokens // args.context
        held = self._read(args.test_tokens + args.tuning_tokens, "validation", VALIDATION_SEED)
        self.held = {"test": self._held(held[:n_test]), "tuning": self._held(held[n_test:])}

    def _read(self, n_tokens: int, part: Any, seed: int) -> Tensor:
        return read_rows(self.config, self.assembled.loaded, n_tokens, part, seed).input_ids

    def _held(self, rows: Tensor) -> Held:
        bank, step = self.bank, self.args.batch_rows
        held = Held(rows, [bank.teacher(batch.to(bank.device)) for batch in rows.split(step)])
        sums = bank.measure([Lot(bank, [Arm("spliced")], 0)], rows, held.cleans, step).compute()
        held.spliced = {"kl": sums.point["kl_spliced"], "ce": sums.point["ce_spliced"]}
        held.spliced |= {"ce_base": sums.point["ce_base"], "n_predictions": sums.n, "n_rows": len(rows)}
        return held

    def rows(self, seed: int, n_tokens: int) -> Tensor:
        """Training rows; those of a shorter run are the first of a longer one."""
        most = max([self.args.choose_tokens, *self.args.budgets])
        if seed not in self._rows:
            self._rows[seed] = self._read(most, "train", seed)
        return self._rows[seed][: max(1, n_tokens // self.args.context)]

    def unit(self, name: str, arms: Sequence[Arm], seed: int, n_tokens: int, held: str) -> dict[str, Any] | None:
        """Train and measure arms in one pass, or read what an earlier call found; None where there is no time."""
        file = self.args.out / f"{name}.json"
        about = {"arms": [_plain(arm) for arm in arms], "seed": seed, "tokens": n_tokens, "rows": held}
        about |= {"inputs": self.inputs()}
        if file.is_file() and (found := read_json(file))["about"] == about:
            print(f"== {name}: there already", flush=True)
            return dict(found)
        rows = self.rows(seed, n_tokens)
        n_steps = math.ceil(len(rows) / self.args.batch_rows)
        if not arms or not self.clock.fits(n_steps, len(arms)):
            print(f"== {name}: not begun, {self.clock.left():.0f} s left", flush=True)
            return None
        print(f"== {name}: {len(arms)} arms, {n_steps} steps", flush=True)
        found = None
        while found is None:
            found = self._try(arms, seed, rows, self.held[held], Kept(file.with_suffix(".pt"), about))
        out = {"about": about, "n_tokens": rows.numel(), "n_steps": n_steps, **found}
        out |= {
            "spliced": self.held[held].spliced,
            "at_once": self.at_once,
            "environment": environment(),
            "device": self.device_name(),
        }
        write_json(file, out)
        file.with_suffix(".pt").unlink(missing_ok=True)
        name, best = min(out["found"].items(), key=lambda item: item[1]["kl"] or math.inf)
        taken = f"{out['seconds']:.1f} s + {out['seconds_measuring']:.1f} s of measuring"
        print(f"   {taken}; lowest KL {best['kl']}: {name}", flush=True)
        return out

    def _try(self, arms: Sequence[Arm], seed: int, rows: Tensor, held: Held, kept: "Kept") -> dict[str, Any] | None:
        """None where the students at once do not fit the memory: fewer are tried next."""
        try:
            return self._run(arms, seed, rows, held, kept)
        except RuntimeError as error:
            if not out_of_memory(error) or self.at_once == 1:
                raise
            self.at_once = -(-self.at_once // 2)
        print(f"   does not fit the memory; {self.at_once} students at once then", flush=True)
        torch.cuda.empty_cache()
        return None

    def _run(self, arms: Sequence[Arm], seed: int, rows: Tensor, held: Held, kept: "Kept") -> dict[str, Any]:
        bank, step, started = self.bank, self.args.batch_rows, time.monotonic()
        bridged = any(arm.bridge for arm in arms)
        lots = [Lot(bank, each, seed) for each in lots_of(arms, self.at_once)]
        students = [student for lot in lots for student in lot.students]
        losses, before = kept.read(students, bank.device)
        for first in range(step * len(losses), len(rows), step):
            self.clock.check()
            ids = rows[first : first + step].to(bank.device)
            clean = bank.teacher(ids, bridged)
            found = []
            for lot in lots:
                found += bank.gradients(lot, ids, clean)
                for student in lot.students:
                    student.update(first / len(rows), len(ids) / len(rows))
            losses.append(torch.stack(found))
            if bank.device.type == "cuda":
                torch.cuda.synchronize(bank.device)
            kept.write(students, losses, before + time.monotonic() - started)
        for student in students:
            student.finish()
        spent, started = before + time.monotonic() - started, time.monotonic()
        means = bank.measure(lots, held.rows, held.cleans, step).compute()
        curves = torch.stack(losses).float().cpu()
        every = max(1, len(curves) // 20)
        ids = held.rows[:step].to(bank.device)
        result = {}
        for i, student in enumerate(students):
            name = student.arm.name
            kl, ce = means.point[f"kl_{name}"], means.point[f"ce_{name}"]
            row = {"kl": kl, "ce": ce, "top1": means.point[f"top1_{name}"]}
            row |= {"kl_closed": 1 - kl / held.spliced["kl"]}
            row |= {"gap_closed": (held.spliced["ce"] - ce) / (held.spliced["ce"] - held.spliced["ce_base"])}
            row |= {"same_latents": bank.same_latents(student, ids, held.cleans[0])}
            row = {key: value if math.isfinite(value) else None for key, value in row.items()}
            curve = [round(float(part.mean()), 5) for part in curves[:, i].split(every)]
            result[name] = {**row, "kl_ci95": row["kl"] and means.ci95[f"kl_{name}"], "training_kl": curve}
        measured = time.monotonic() - started
        self.clock.pace, self.clock.measuring = spent / len(curves) / len(arms), measured / len(arms)
        order = {arm.name: result[arm.name] for arm in arms}
        return {"seconds": spent, "seconds_measuring": measured, "found": order}

    def inputs(self) -> dict[str, Any]:
        """What a result hangs on beside its arms."""
        names = ("model", "sae", "data", "dtype", "context", "batch_rows", "validation_fraction", "test_tokens")
        return {name: getattr(self.args, name) for name in (*names, "tuning_tokens")}

    def device_name(self) -> str:
        device = self.bank.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def lots_of(arms: Sequence[Arm], at_once: int) -> list[list[Arm]]:
    """Arms of one rank and scaling together, at most so many, as evenly as can be; those without an adapter with the
    lowest rank: one pass more costs more than products with zeros."""
    kinds: dict[tuple[int, float], list[Arm]] = {}
    lowest = min(((arm.rank, arm.scaling) for arm in arms if arm.rank), default=(0, 1.0))
    for arm in arms:
        kinds.setdefault((arm.rank, arm.scaling) if arm.rank else lowest, []).append(arm)
    out = []
    for same in kinds.values():
        n_lots = -(-len(same) // at_once)
        out += [same[i::n_lots] for i in range(n_lots)]
    return out


def _plain(arm: Arm) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(arm).items()}


def _best(arms: Sequence[Arm], found: dict[str, Any]) -> Arm:
    return min(arms, key=lambda arm: found[arm.name]["kl"] or math.inf)


def choose(study: Study) -> dict[str, Arm] | None:
    """Each method's best arm on the tuning rows, under the method's name."""
    families = {method: _wanted(arms, study.args.only) for method, arms in grids().items()}
    every = [arm for arms in families.values() for arm in arms]
    unit = study.unit("choose", every, CHOICE_SEED, study.args.choose_tokens, "tuning")
    if unit is None:
        return None
    best = {method: _best(arms, unit["found"]) for method, arms in families.items() if arms}
    chosen = {}
    for method, arm in best.items():
        edges = [_edge(rate, [each.rates()[i] for each in families[method]]) for i, rate in enumerate(arm.rates())]
        chosen[method] = {"arm": arm.name, "adapter_rate": edges[0], "sae_rate": edges[1]}
        chosen[method] |= {"n_tried": len(families[method]), "kl": unit["found"][arm.name]["kl"]}
    write_json(study.args.out / "chosen.json", chosen)
    print("   chosen:", chosen, flush=True)
    return best


def _edge(rate: float, tried: Sequence[float]) -> str:
    """Where a chosen rate lies among those tried."""
    if len(set(tried)) == 1:
        return "none" if rate == 0 else "one tried"
    if rate == min(tried):
        return "lowest of its grid"
    return "highest of its grid" if rate == max(tried) else "inside its grid"


def ideas(study: Study, best: dict[str, Arm]) -> dict[str, list[str]] | None:
    """By method, the ideas that lower its best arm's KL on the tuning rows, best first."""
    arms, made = [], {}
    for method in METHODS:
        if method in best:
            arms.append(replace(best[method], name=method))
            with_idea = {name: idea.of(best[method], f"{method}: {name}") for name, idea in IDEAS.items()}
            made[method] = {name: arm for name, arm in with_idea.items() if arm is not None}
            arms += _wanted(list(made[method].values()), study.args.only)
    unit = study.unit("ideas", arms, CHOICE_SEED, study.args.choose_tokens, "tuning")
    if unit is None:
        return None
    kl = {name: row["kl"] or math.inf for name, row in unit["found"].items()}
    better: dict[str, list[str]] = {}
    for method, with_ideas in made.items():
        change = {name: kl[arm.name] / kl[method] - 1 for name, arm in with_ideas.items() if arm.name in kl}
        better[method] = sorted((name for name, by in change.items() if by < 0), key=lambda name: change[name])
        print(f"   {method}:", {name: f"{by:+.1%}" for name, by in change.items()}, flush=True)
    write_json(study.args.out / "better.json", better)
    return better


def contestants(best: dict[str, Arm], better: dict[str, list[str]]) -> list[Arm]:
    """The arms of the comparison: each method, each with up to three ideas that helped it; joint with its best one."""
    arms = [replace(best[method], name=method) for method in (*METHODS, "joint-sae") if method in best]
    for method in METHODS:
        together: list[str] = []  # they set different fields
        for name in better.get(method, ()):
            taken = {key for each in together for key in _sets(each)}
            if len(together) < 3 and not taken & _sets(name):
                together.append(name)
        alone = [together[:1]] if method == "joint" and len(together) > 1 else []
        for names in (*alone, together):
            arm: Arm | None = best.get(method)
            for name in names:
                arm = None if arm is None else IDEAS[name].of(arm, "")
            if arm is not None and names:
                arms.append(replace(arm, name=f"{method} + {'; '.join(names)}"))
    return arms


def _sets(idea: str) -> set[str]:
    """The fields that an idea sets; schedule and mean go together, as do the two windows."""
    alike = {"average": "schedule", "adapter_window": "window", "sae_window": "window", "rslora": "rank"}
    return {alike.get(key, key) for key in IDEAS[idea].fields}


def _wanted(arms: Sequence[Arm], only: str | None) -> list[Arm]:
    return [arm for arm in arms if only is None or re.search(only, arm.name)]


def summary(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By budget and arm: KL of each seed, and over the better rival of that seed."""
    out: dict[str, Any] = {}
    for unit in units:
        budget, seed, found = out.setdefault(str(unit["n_tokens"]), {}), unit["about"]["seed"], unit["found"]
        kls = {name: row["kl"] for name, row in found.items() if row["kl"] is not None}
        rival = min((kl for name, kl in kls.items() if name.split(" + ")[0] in RIVALS), default=None)
        for name, row in found.items():
            entry = budget.setdefault(name, {"kl": {}, "over_best_rival": {}, "same_latents": {}, "gap_closed": {}})
            for key in ("kl", "same_latents", "gap_closed"):
                entry[key][str(seed)] = row[key]
            entry["over_best_rival"][str(seed)] = row["kl"] / rival if rival and row["kl"] else None
    return out


def table(found: dict[str, Any]) -> list[str]:
    lines = []
    for budget, arms in found.items():
        lines += ["", f"{int(budget):,} tokens", f"{'KL':>8s} {'/ best rival (by seed)':>30s}  same latents"]
        for name, row in arms.items():
            kls, over = ([v for v in row[key].values() if v is not None] for key in ("kl", "over_best_rival"))
            if kls:
                shown = " ".join(f"{v:.3f}" for v in over)
                same = min(row["same_latents"].values())
                lines.append(f"{sum(kls) / len(kls):8.4f} {shown:>30s}  {same:.3f}  {name}")
    return lines


def tokens(text: str) -> int:
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    return int(float(text.rstrip("kM")) * scale)


def arm(name: str) -> tuple[str, Arm]:
    """An arm of the grids and the method that it belongs to."""
    for method, arms in grids().items():
        for each in arms:
            if each.name == name:
                return method, each
    raise argparse.ArgumentTypeError(
        f"no arm {name!r}; there are {', '.join(a.name for g in grids().values() for a in g)}"
    )


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for everything, loading included")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--sae", default=DEFAULT_SAE)
    parser.add_argument("--data", default=DEFAULT_DATA, help="a file or folder, as saelora's --data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--choose-tokens", type=tokens, default=250_000)
    parser.add_argument("--budgets", type=lambda text: [tokens(each) for each in text.split(",")], default="200k,1M,2M")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--chosen", type=arm, nargs="+", help="arms by their names in joint_arms.py, as lora@0.0007")
    parser.add_argument("--test-tokens", type=tokens, default=150_000)
    parser.add_argument("--tuning-tokens", type=tokens, default=50_000)
    parser.add_argument("--validation-fraction", type=float, default=0.1)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--at-once", type=int, default=12, help="students in one pass; fewer where the memory ends")
    parser.add_argument("--only", help="a regular expression: arms of the first two stages whose name it is found in")
    parser.add_argument("--contestants", help="the same for the last stage")
    parser.add_argument("--no-check", action="store_true")
    args = parser.parse_args(argv)
    args.chosen = dict(args.chosen or ())
    return args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    started = time.monotonic()
    args = parsed(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(started + args.seconds)
    print({**vars(args), "out": str(args.out), "commit": source_commit()}, environment(), sep="\n", flush=True)
    study = Study(args, clock)
    print(f"{study.device_name()}: loaded and measured after {time.monotonic() - started:.1f} s", flush=True)
    print({name: held.spliced for name, held in study.held.items()}, flush=True)
    if not args.no_check and not (args.out / "check.json").is_file():
        found = check(study.assembled, study.rows(CHOICE_SEED, 6 * args.context))
        write_json(args.out / "check.json", found)
        print("check against Distill:", found, f"{time.monotonic() - started:.1f} s", flush=True)
    units: list[dict[str, Any]] = []
    with study.bank.installed():
        try:
            compare(study, units)
        except OutOfTime:
            print("out of time in the middle of a unit; the same command goes on there", flush=True)
    done = summary(units)
    write_json(args.out / "summary.json", done)
    print("\n".join(table(done)), f"{time.monotonic() - started:.1f} s in all", sep="\n", flush=True)
    return done


def compare(study: Study, units: list[dict[str, Any]]) -> None:
    """All stages; the finished units of the last one are added to ``units``."""
    best: dict[str, Arm] | None
    better: dict[str, list[str]] | None
    if study.args.chosen:
        best, better = study.args.chosen, {}
    else:
        best = choose(study)
        better = None if best is None else ideas(study, best)
    if best is None or better is None:
        return
    arms = _wanted(contestants(best, better), study.args.contestants)
    for budget in study.args.budgets:
        for seed in study.args.seeds:
            found = study.unit(f"compare-{budget}-seed{seed}", arms, seed, budget, "test")
            if found is not None:
                units.append(found)
                write_json(study.args.out / "summary.json", summary(units))


if __name__ == "__main__":
    main()
