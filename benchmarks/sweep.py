"""Five LoRA ranks in one pass against five separate runs, of this project's own step and of the published one.

    python benchmarks/sweep.py --json benchmarks/results/sweep.json

Every arm takes the same rows, interleaved. Reported, each with its spread over the rounds:
  speedup_vs_own          sum of the five separate steps' seconds / one step that trains all five
  speedup_vs_published    the same of the published step's (two forwards, eager attention, dropout)
  largest_loss_difference between a branch in the shared pass and the same rank alone, over all rounds and ranks
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import setting as settings
from measure import interleaved, ratios, summary
from published import ALPHA, DROPOUT, Published, copy_sharing_weights, with_adapter
from setting import Ours, Setting
from torch import Tensor

from saelora.manifest import environment, write_json


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_options(parser)
    parser.set_defaults(repeats=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rows", type=int, default=1, help="per step")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    setting = settings.make(args, args.rows * (args.repeats + 1), args.context)
    unused = ("json", "rank", *(("model", "sae", "data") if args.shape else ("shape",)))
    inputs = {k: v for k, v in vars(args).items() if k not in unused}
    out: dict[str, Any] = {"inputs": {**inputs, "device": str(setting.device)}, "environment": environment()}
    print(out["inputs"], out["environment"], sep="\n", flush=True)
    out |= compare(setting, args)
    for name in ("speedup_vs_own", "speedup_vs_published"):
        low, high = out[name]["spread"]
        print(f"{name:24s} {out[name]['median']:.2f} ({low:.2f} to {high:.2f})")
    print(f"largest_loss_difference  {out['largest_loss_difference']:.3g} nats per token")
    if args.json:
        write_json(args.json, out)
    return out


def compare(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and losses of all arms, round by round."""
    together = Ours(setting, ranks=args.ranks)
    alone = {f"own_{rank}": Ours(setting, ranks=[rank]) for rank in args.ranks}
    source = setting.model if setting.autocast is None else copy.deepcopy(setting.model).float()
    published = {f"published_{rank}": _published(setting, source, rank) for rank in args.ranks}
    losses: dict[str, list[dict[str, Tensor]]] = {name: [] for name in ("one_pass", *alone)}
    batches = {name: iter(setting.rows.split(args.rows)) for name in ("one_pass", *alone, *published)}

    def ours(name: str, step: Ours) -> Any:
        return lambda: losses[name].append(step.step(next(batches[name])))

    calls = {"one_pass": ours("one_pass", together), **{name: ours(name, step) for name, step in alone.items()}}
    calls |= {name: lambda n=name, p=p: p.step(next(batches[n])) for name, p in published.items()}
    taken = interleaved(calls, args.repeats, setting.device)
    out: dict[str, Any] = {}
    for kind, names in (("own", alone), ("published", published)):
        out[f"speedup_vs_{kind}"] = ratios(
            [sum(t) for t in zip(*(taken[n] for n in names), strict=True)], taken["one_pass"]
        )
    branches = [run.branch.name for run in together.distill.runs]
    shared = [{f"own_{r}": step.get(f"loss/{b}", step["loss"]) for r, b in zip(args.ranks, branches, strict=True)}
              for step in losses["one_pass"]]  # fmt: skip
    out["largest_loss_difference"] = max(
        abs(float(step[name]) - float(own["loss"]))
        for name in alone
        for step, own in zip(shared, losses[name], strict=True)
    )
    out["seconds"] = {name: summary(values) for name, values in taken.items()}
    return out


def _published(setting: Setting, source: Any, rank: int) -> Published:
    """The published step, always in float32."""
    model = copy_sharing_weights(source)
    adapted = with_adapter(model, "after", setting.hookpoint, rank=rank, alpha=ALPHA, dropout=DROPOUT)
    return Published(adapted, sae=setting.sae, layer=setting.hookpoint.layer, kept_ids=setting.token_mask.exempt_ids)


if __name__ == "__main__":
    main()
