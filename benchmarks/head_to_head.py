"""Every way to make a model work through its SAE, at matched cost: recipes/smollm/timing.yaml, whole or small.

    python benchmarks/head_to_head.py --quick --json F     # under ten minutes on two CPU cores, one seed
    python benchmarks/head_to_head.py --out DIR --json F   # about two hours; repeat with --resume to go on

Written, for each entry of the recipe (its largest budget, last checkpoint, means over seeds):
  ce, gap_closed    of the gap between the original model and the SAE that a method began from; of an SAE trained end to
                    end: of the gap that the recipe's SAE trained on reconstruction alone leaves
  seconds, n_tokens, model_flops    of training, the SAE's included where that was trained here (with_sae)
and speedup_to_e2e: how many times sooner than the end-to-end SAE the quickest of the others reached its lowest loss
(None: never); tokens and operations likewise, under "reached".
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from saelora.jobs.compare import compare, render
from saelora.manifest import environment, write_json
from saelora.reporting import compare as tables
from saelora.reporting.comparison.run import ComparisonRun

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm" / "timing.yaml"
QUICK = [
    *("seeds=[0]", "evaluations=1", "eval_tokens=1k"),
    *("saes.local.tokens=32k", "saes.local.checkpoints=[1.0]", "saes.local-short.tokens=8192"),
    *("saes.e2e.tokens=8192", "saes.e2e.lr=3e-3", "saes.e2e.evaluations=2"),
    *("saes.e2e+downstream.tokens=2k", "saes.e2e+downstream.lr=3e-3"),
]
COSTS = ("seconds", "n_tokens", "model_flops")
QUICK_TOKENS = 1_024  # of each method


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and few tokens")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe; repeatable")
    parser.add_argument("--out", help="keep the runs there; default: a temporary folder")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    changes = [*(quick(args.recipe) if args.quick else []), *args.set]
    inputs = {"recipe": f"{args.recipe.parent.name}/{args.recipe.name}", "set": changes}
    inputs |= {"threads": torch.get_num_threads()}
    print(inputs, environment(), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or f"{scratch}/compare"
        found = compare(recipe=str(args.recipe), set=changes, out=out, resume=args.resume)
        print(render({**found, "figures": found["figures"] if args.out else []}))
    runs = [ComparisonRun.model_validate(run) for run in found["runs"]]
    costs = tables.speedup_to_e2e(runs)
    reached = costs.get("seconds")
    result = {
        "inputs": inputs,
        "environment": environment(),
        "methods": summary(runs),
        "speedup_to_e2e": reached and reached.median,
        "reached": reached and {**vars(reached), "costs": {cost: vars(row) for cost, row in costs.items()}},
        "curves": tables.tidy(runs),
    }
    if args.json:
        write_json(args.json, result)
    return result


def quick(recipe: Path) -> list[str]:
    """Overrides that make a recipe small: one seed, few tokens, a fixed learning rate for every method."""
    from saelora.jobs.comparison.recipe import read_recipe

    methods = [entry for entry in read_recipe(recipe).entries if entry.kind == "method"]
    small = [f"methods.{entry.name}.tokens={QUICK_TOKENS}" for entry in methods]
    return [*QUICK, *small, *(f"methods.{entry.name}.lr={entry.lr[0]}" for entry in methods if len(entry.lr) > 1)]


def _share(run: ComparisonRun) -> float:
    return (run.start.share if run.start is not None else None) or 1.0


def summary(runs: list[ComparisonRun]) -> dict[str, dict[str, float | None]]:
    """Figures by entry."""
    local = next((run.final.ce for run in runs if run.method == "local"), None)
    out = {}
    for name in dict.fromkeys(run.name for run in runs):
        budget = max(run.budget for run in runs if run.name == name)
        mine = [run for run in runs if run.name == name and run.budget == budget]
        last = max(_share(run) for run in mine)
        mine = [run for run in mine if _share(run) == last]
        rows = [row for run in mine for row in tables.tidy([run]) if row["final"]]
        base, ce = mean([run.final.ce_base for run in mine]), mean([run.final.ce for run in mine])
        gap = mean([run.final.gap_closed for run in mine])
        if str(mine[0].method).startswith("e2e") and None not in (local, base, ce):
            gap = (local - ce) / (local - base)
        here = rows[0]["total_seconds"] is not None
        costs = {c: mean([row[f"total_{c}" if here else c] for row in rows]) for c in COSTS}
        out[name] = {"ce": ce, "gap_closed": gap, **costs, "with_sae": here}
    return out


def mean(values: list[float | None]) -> float | None:
    """None where any is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


if __name__ == "__main__":
    main()
