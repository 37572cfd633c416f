"""How a step's cost grows with tokens, context, SAE width, rank and number of branches.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json

Each axis is varied alone around a base point (adapters above the SAE). An axis's sizes are timed interleaved. Reported
for each: the exponent over the upper half of its range (slope of log seconds on log size), the fit
seconds = a + b * size^p by least squares of relative errors, and the size from which b * size^p is over half the step.
Axes: tokens per step (rows of the base context); context, at the same number of tokens; d_sae, of random SAEs with as
many active latents as the base SAE (or 64); rank; branches that share one teacher and splice.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import setting as settings
import torch
from measure import exponent, interleaved, random_sae, summary
from setting import Ours, Setting

from saelora.manifest import environment, write_json

_SIZES = {
    "tokens": [256, 512, 1024, 2048, 4096],
    "context": [128, 256, 512, 1024, 2048],
    "d_sae": [1152, 2304, 4608, 9216, 18432, 36864, 73728],
    "rank": [1, 4, 16, 64, 128, 256, 512],
    "branches": [1, 2, 4, 8],
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_options(parser)
    parser.set_defaults(repeats=3)
    parser.add_argument("--context", type=int, default=256, help="base tokens per row")
    parser.add_argument("--tokens", type=int, default=512, help="base tokens per step")
    parser.add_argument("--axes", nargs="+", choices=list(_SIZES), default=list(_SIZES))
    for axis, sizes in _SIZES.items():
        parser.add_argument(f"--{axis.replace('_', '-')}-sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    n_tokens = max([*args.tokens_sizes, *args.context_sizes, args.tokens])
    setting = settings.make(args, -(-n_tokens // args.context), args.context)
    unused = ("json", *(("model", "sae", "data") if args.shape else ("shape",)))
    inputs = {k: v for k, v in vars(args).items() if k not in unused}
    inputs |= {"device": str(setting.device), "dtype": str(setting.model.dtype), "hookpoint": str(setting.hookpoint)}
    out: dict[str, Any] = {"inputs": inputs, "environment": environment(), "axes": {}}
    print(out["inputs"], out["environment"], sep="\n", flush=True)
    for axis in args.axes:
        out["axes"][axis] = measure_axis(axis, getattr(args, f"{axis}_sizes"), setting, args)
        print(line(axis, out["axes"][axis]), flush=True)
        if args.json:
            write_json(args.json, out)
    return out


def measure_axis(axis: str, sizes: Sequence[int], setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds by size, the exponent, the fit, and where the growing part takes over."""
    steps = {str(size): step_at(axis, size, setting, args) for size in sizes}
    taken = interleaved(steps, args.repeats, setting.device)
    found: dict[str, Any] = {"points": {size: summary(values) for size, values in taken.items()}}
    medians = [found["points"][str(size)]["median"] for size in sizes]
    upper = len(sizes) // 2 if len(sizes) > 2 else 0
    found["exponent_upper_half"] = exponent(sizes[upper:], medians[upper:]) if len(sizes) > 1 else None
    if len(sizes) > 2:
        found["fit"] = fit(sizes, medians)
        found["dominates_from"] = dominates_from(found["fit"])
    return found


def step_at(axis: str, size: int, setting: Setting, args: argparse.Namespace) -> Callable[[], None]:
    """One step with this axis at this size and the others at the base point."""
    flat = setting.rows.flatten()
    n_tokens, context = (size if axis == "tokens" else args.tokens), (size if axis == "context" else args.context)
    if axis == "context":
        n_tokens = max(args.context_sizes)
    rows = flat[: max(1, n_tokens // context) * context].view(-1, context)
    if axis == "d_sae":
        k = getattr(setting.sae.cfg, "k", 64)
        torch.manual_seed(0)
        sae: Any = random_sae("topk", setting.sae.cfg.d_in, size, k, setting.device, torch.float32)
        setting = replace(setting, sae=sae)
    rank, branches = (size if axis == "rank" else args.rank), (size if axis == "branches" else 1)
    ours = Ours(setting, ranks=[rank] * branches)
    return lambda: ours.step(rows)


def fit(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """a, b >= 0 and p in 0.5, 0.55, ..., 3 that make the relative errors of a + b * size^p least."""
    best: dict[str, float] = {}
    y = torch.tensor(values, dtype=torch.float64)
    for p in torch.arange(0.5, 3.001, 0.05, dtype=torch.float64).tolist():
        columns = torch.stack([torch.ones_like(y), (torch.tensor(sizes, dtype=torch.float64) / sizes[-1]) ** p], 1)
        weighted = columns / y[:, None]
        for used in ([0], [1], [0, 1]):  # a further term must do better by more than rounding
            found = torch.linalg.lstsq(weighted[:, used], torch.ones_like(y)[:, None]).solution[:, 0].tolist()
            terms = dict(zip(used, found, strict=True))
            a, b = terms.get(0, 0.0), terms.get(1, 0.0)
            if a < 0 or b < 0:
                continue
            error = float((weighted @ torch.tensor([a, b], dtype=torch.float64) - 1).square().mean().sqrt())
            if not best or error < best["relative_error"] - 1e-12:
                best = {"a": a, "b": b / sizes[-1] ** p, "p": round(p, 2), "relative_error": error}
    return best


def dominates_from(fitted: dict[str, float]) -> float | None:
    """The size at which b * size^p equals a, above which it is over half of the whole; None where nothing grows."""
    if not fitted or fitted["b"] <= 0:
        return None
    return (fitted["a"] / fitted["b"]) ** (1 / fitted["p"])


def line(axis: str, found: dict[str, Any]) -> str:
    points = "  ".join(f"{size}: {point['median']:.3f}" for size, point in found["points"].items())
    text = f"{axis:9s} seconds {points}\n          exponent over the upper half {found['exponent_upper_half'] or 0:.2f}"
    fitted, size = found.get("fit"), found.get("dominates_from")
    if fitted:
        text += f"; seconds = {fitted['a']:.3g} + {fitted['b']:.3g} * {axis}^{fitted['p']}"
        text += f" (relative error {fitted['relative_error']:.1%})"
    return text + (f"; over half of the step from {axis} = {size:,.0f}" if size is not None else "")


if __name__ == "__main__":
    main()
