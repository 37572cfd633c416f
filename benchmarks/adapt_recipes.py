"""Which adapt recipe closes most of the gap at equal tokens? Runs variants one after another on the same rows.

    python benchmarks/adapt_recipes.py --tokens 25k --json benchmarks/results/adapt_recipes_25k.json \
        --variant paper=recipes/paper.yaml --variant default= --variant "lr2=lr: 2e-3"

A variant is NAME=FILE.yaml or NAME=inline YAML of `saelora adapt` options over its defaults. Every variant sees the
same documents in the same order, as many tokens, and is measured on the same held-out rows of 512 tokens. `--along`
also measures on the way: with a constant learning rate and no warm-up that is what a run of so many tokens would end
at; with a schedule it is not, since a shorter run would have decayed by then.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from saelora.assemble import assemble, read_rows, validation_rows
from saelora.config import Count, build, coerce, read_yaml
from saelora.core.splice import splice
from saelora.evals.loss import evaluate_loss
from saelora.jobs import adapt
from saelora.jobs.students import add_adapter
from saelora.jobs.training_options import recipe_of
from saelora.manifest import environment, write_json
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--sae", default=DEFAULT_SAE)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--tokens", default="25k")
    parser.add_argument("--along", nargs="*", default=[], help="training tokens after which to measure as well")
    parser.add_argument("--eval-tokens", default="10k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variant", action="append", required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    common = {"model": args.model, "sae": [args.sae], "data": args.data, "tokens": args.tokens}
    assembled = assemble(build(adapt.Config, common))
    eval_config = build(adapt.Config, {**common, "eval_tokens": args.eval_tokens, "eval_context": 512})
    heldout = validation_rows(eval_config, assembled.loaded)
    saes, token_mask = assembled.sae_modules, assembled.token_mask
    before = evaluate_loss(assembled.loaded.model, saes, token_mask, heldout, arms=["sae"])
    print(f"ce_base {before['ce_base']:.4f}  ce_sae {before['ce_sae']:.4f}  on {before['n_tokens_evaluated']} tokens")
    rows: list[dict[str, Any]] = []
    for text in args.variant:
        name, _, value = text.partition("=")
        options = read_yaml(Path(value)) if value.endswith(".yaml") else yaml.safe_load(value) or {}
        for seed in args.seeds:
            config = build(adapt.Config, {**options, **common, "seed": seed})
            found = run(config, assembled, heldout, before, [coerce(Count, at, "along") for at in args.along])
            rows.append({"variant": name, "seed": seed, "options": options, **found})
            print(
                f"{name:24s} seed {seed}  gap closed {found['gap_closed']:6.1%}  kl {found['kl']:.4f}  "
                f"{found['tokens_per_second']:.0f} tok/s  {found['n_steps']} steps",
                flush=True,
            )
            if args.json:
                inputs = {k: str(v) for k, v in vars(args).items() if k != "variant"}
                write_json(args.json, {"inputs": inputs, "environment": environment(), "before": before, "rows": rows})


def run(
    config: adapt.Config, assembled: Any, heldout: torch.Tensor, before: dict[str, Any], along: list[int]
) -> dict[str, Any]:
    """Adapt once, measure (also after each of `along` training tokens), take the adapter off again."""

    def measured() -> dict[str, Any]:
        after = evaluate_loss(model, assembled.sae_modules, assembled.token_mask, heldout, arms=["adapted"])
        gap_closed = (before["ce_sae"] - after["ce_adapted"]) / before["ce_gap"]
        return {"gap_closed": gap_closed, "ce": after["ce_adapted"], "kl": after["kl_adapted"]}

    rows = read_rows(config, assembled.loaded, coerce(Count, config.tokens, "tokens"), "train", config.seed).input_ids
    model: Any = add_adapter(None, config, assembled)
    n_steps = -(-len(rows) // config.batch_rows)
    waiting, on_the_way, seconds = sorted(along), [], 0.0
    with splice(model, assembled.sae_modules, assembled.token_mask) as spliced:
        objective = Distill(model, [Branch("default", spliced, recipe_of(config))], n_rows=len(rows))
        for first in range(0, len(rows), config.batch_rows):
            started = time.perf_counter()
            objective.step(rows[first : first + config.batch_rows], first / len(rows))
            seconds += time.perf_counter() - started
            seen = min(first + config.batch_rows, len(rows)) * rows.shape[1]
            # a run of N tokens takes as many whole rows as fit in N
            while waiting and seen + rows.shape[1] > waiting[0]:
                waiting.pop(0)
                with spliced.disabled():
                    on_the_way.append({"n_tokens": seen, **measured()})
                print(f"  after {seen} tokens: gap closed {on_the_way[-1]['gap_closed']:6.1%}", flush=True)
    found = measured()
    model.unload()
    return {
        **found,
        "along": on_the_way,
        "n_tokens": rows.numel(),
        "n_steps": n_steps,
        "seconds": seconds,
        "tokens_per_second": rows.numel() / seconds,
    }


if __name__ == "__main__":
    main()
