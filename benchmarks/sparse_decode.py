"""Reconstructing from active latents alone (saelora.saes.sparse) against SAELens's dense encode and decode.

    python benchmarks/sparse_decode.py --json benchmarks/results/sparse_decode.json

Random SAEs, forward (what adapters above the SAE need) and forward + backward to the input (adapters below it too).
Prints the ratio dense / sparse of every point, and the crossover: the least d_sae per active latent from which on
gathering was faster at every point measured, which is what saelora.saes.sparse.worthwhile goes by.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measure import free_bytes, interleaved, random_sae, ratios, set_active, summary
from torch import Tensor

from saelora.manifest import environment, write_json
from saelora.models.loading import pick_device
from saelora.saes.sparse import sparse

MODES = ("forward", "forward_backward")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, nargs="+", default=[576, 2304])
    d_saes = [1024, 2048, 4608, 9216, 18432, 32768, 65536, 131072]
    parser.add_argument("--d-sae", type=int, nargs="+", default=d_saes)
    parser.add_argument("--k", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--kinds", nargs="+", default=["topk", "jumprelu"], choices=["topk", "jumprelu"])
    parser.add_argument("--tokens", type=int, help="default: 256 on a CPU, 4096 on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--autocast", choices=["bfloat16"], help="weights stay float32, dense products run in this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    args.tokens = args.tokens or (4096 if device.type == "cuda" else 256)
    out: dict[str, Any] = {"inputs": {k: v for k, v in vars(args).items() if k != "json"}, "environment": environment()}
    out["inputs"]["device"] = str(device)
    print(out["inputs"], out["environment"], sep="\n")
    out["points"] = []
    for point in points(args, device):
        out["points"].append(point)
        print(line(point), flush=True)
        out["crossover"] = {mode: crossover(out["points"], mode) for mode in MODES}
        if args.json:
            write_json(args.json, out)
    print("crossover, least d_sae per active latent:", out["crossover"])
    return out


def points(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    for kind, d_in, d_sae in product(args.kinds, args.d_in, args.d_sae):
        where = {"kind": kind, "d_in": d_in, "d_sae": d_sae}
        needed = 4 * d_sae * (4 * d_in + 6 * args.tokens)  # weights, their copies, and [N, S] tensors of both passes
        if needed > 0.8 * free_bytes(device):
            yield {**where, "skipped": f"needs about {needed / 1e9:.0f} GB"}
            continue
        torch.manual_seed(0)
        sae: Any = random_sae(kind, d_in, d_sae, args.k[0], device, torch.float32)
        x = torch.randn(1, args.tokens, d_in, device=device)
        for k in args.k:
            set_active(sae, k)
            yield {**where, "k": k, **timed(sae, x, args)}


def timed(sae: Any, x: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, and how many times faster gathering is."""
    gathering = sparse(sae)
    ways = {"dense": lambda x: sae.decode(sae.encode(x)), "sparse": gathering.reconstruct}
    autocast = torch.bfloat16 if args.autocast else None
    found: dict[str, Any] = {}
    for mode in MODES:

        def run(way: Any, backward: bool = mode == "forward_backward") -> None:
            given = x.clone().requires_grad_(backward)
            with torch.set_grad_enabled(backward), torch.autocast(x.device.type, autocast, enabled=bool(autocast)):
                recon = way(given)
            if backward:
                recon.backward(x)

        taken = interleaved({name: lambda way=way: run(way) for name, way in ways.items()}, args.repeats, x.device)
        found[mode] = {f"{name}_seconds": summary(values) for name, values in taken.items()}
        found[mode]["speedup"] = ratios(taken["dense"], taken["sparse"])
    return found


def line(point: dict[str, Any]) -> str:
    name = f"{point['kind']:8s} d_in {point['d_in']:5d}  d_sae {point['d_sae']:6d}"
    if "skipped" in point:
        return f"{name}  skipped: {point['skipped']}"
    parts = []
    for mode in MODES:
        ways, ratio = point[mode], point[mode]["speedup"]
        dense, gathered = (1e3 * ways[f"{way}_seconds"]["median"] for way in ("dense", "sparse"))
        low, high = ratio["spread"]
        parts.append(f"{mode} {dense:.1f} -> {gathered:.1f} ms, {ratio['median']:.2f}x ({low:.2f} to {high:.2f})")
    return f"{name}  k {point['k']:3d}  " + "  ".join(parts)


def crossover(points: list[dict[str, Any]], mode: str) -> float | None:
    """The least d_sae / k from which on every point is faster by gathering; None where the largest is not."""
    found = None
    measured = [(p["d_sae"] / p["k"], p[mode]["speedup"]["median"]) for p in points if "skipped" not in p]
    for ratio, speedup in sorted(measured, reverse=True):
        if speedup <= 1:
            break
        found = ratio
    return found


if __name__ == "__main__":
    main()
