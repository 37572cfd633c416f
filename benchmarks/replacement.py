"""A step of adapting round transcoders in the place of every MLP, against the same step of the model as it is.

    python benchmarks/replacement.py --json benchmarks/results/replacement.json

Arms run interleaved on one model's weights and the same rows, adapters in all layers: `plain`, without SAEs, LoRA on
all linears; `cascading` and `parallel`, with random TopK transcoders of all layers, LoRA on attention (a replaced MLP
gets none). Reported: plain seconds / ours, round by round, with the spread; 1 is the model's own speed.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, ratios, summary
from peft import get_peft_model

from saelora.assemble import assemble, autocast_dtype, read_rows
from saelora.config import build
from saelora.core.lora import lora_config
from saelora.core.replacement import Replacement
from saelora.core.splice import Splice
from saelora.manifest import environment, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.options import SplicedConfig
from saelora.saes.sparse import sparse
from saelora.saes.transcoder import TranscoderParts, build_transcoder


class _Options(SplicedConfig):
    """Options of a benchmark"""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--sae", default=DEFAULT_SAE, help="any of the model's: it is not run")
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--rows", type=int, default=1, help="per step")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="also print where a cascading step's time goes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    options = {"model": args.model, "sae": [args.sae], "data": args.data, "context": args.context}
    config = build(_Options, options)
    assembled = assemble(config)
    rows = read_rows(config, assembled.loaded, args.rows * args.context * (args.repeats + 1), "train", 0).input_ids
    inputs = {key: value for key, value in vars(args).items() if key not in ("json", "profile")}
    out: dict[str, Any] = {"inputs": inputs, "environment": environment()}
    arms = make_arms(assembled, args)
    batches = {name: iter(rows.split(args.rows)) for name in arms}
    calls = {name: lambda n=name: arms[n].step(next(batches[n]), 0.5) for name in arms}
    taken = interleaved(calls, args.repeats, arms["plain"].device)
    for name in ("cascading", "parallel"):
        out[f"speed_{name}"] = ratios(taken["plain"], taken[name])
    out["seconds"] = {name: summary(values) for name, values in taken.items()}
    for name, value in {**out, **out["seconds"]}.items():
        if "median" in value:
            print(f"{name:20s} {value['median']:.3f}  ({value['spread'][0]:.3f} to {value['spread'][1]:.3f})")
    if args.json:
        write_json(args.json, out)
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            arms["cascading"].step(rows[: args.rows], 0.5)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
    return out


def make_arms(assembled: Any, args: argparse.Namespace) -> dict[str, Distill]:
    """Name -> the steps of a model of its own, which shares the weights."""
    source, every = assembled.loaded.model, list(range(assembled.anatomy.n_layers))
    saes = {Hookpoint(layer, "mlp_out"): transcoder(layer, args, assembled.anatomy.d_model) for layer in every}
    arms = {}
    for name, put_in in (("plain", {}), ("cascading", saes), ("parallel", saes)):
        shared = {id(p): p for p in source.parameters()}
        bare = copy.deepcopy(source, memo=dict(shared))
        adapter = lora_config(bare, every, rank=args.rank, alpha=args.rank, replaced=[h.layer for h in put_in])
        model = get_peft_model(bare, adapter)
        replacement = Replacement("parallel" if name == "parallel" else "cascading")
        spliced = Splice(put_in, assembled.token_mask, None, replacement)
        spliced.attach(model, anatomy_of(model), [])
        arms[name] = Distill(
            model, [Branch("default", spliced)], n_rows=1_000_000, autocast=autocast_dtype(assembled.loaded)
        )
    return arms


def transcoder(layer: int, args: argparse.Namespace, width: int) -> Any:
    """A random TopK transcoder, decoded sparsely."""
    draw = torch.Generator().manual_seed(layer)
    shapes = {"W_enc": (width, args.d_sae), "W_dec": (args.d_sae, width), "b_enc": (args.d_sae,), "b_dec": (width,)}
    weights = {name: 0.05 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    names = {"hook_in": f"blocks.{layer}.mlp.hook_in", "hook_out": f"blocks.{layer}.hook_mlp_out"}
    return sparse(build_transcoder(TranscoderParts(weights, "topk", k=args.k, **names), "random", torch.float32))


if __name__ == "__main__":
    main()
