"""One training step of this project against the published step and the best hand-written one, on the same work.

    python benchmarks/step.py --json benchmarks/results/step.json
    python benchmarks/step.py --shape gemma2-2b --rows 4 --json benchmarks/results/step_gemma2_2b.json

Arms run interleaved on one model's weights, rows, SAE and rank; "after" adapts the layers above the SAE, "all" every
layer. Reported, each with its spread over the rounds:
  speedup_published_after, speedup_published_all   published seconds / ours (two forwards, eager attention, dropout)
  speedup_handwritten_after                        PEFT, a hook, SDPA, whole logits, fused AdamW: seconds / ours
  peak_memory_ratio                                extra memory at the peak of a step: ours / published, after
  loss_memory_ratio                                the same of the loss and its gradient alone
  model_flops_fraction                             useful operations a second / those of one large matrix product
"""

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import setting as settings
import torch
from measure import MIB, free_bytes, interleaved, peak_bytes, ratios, summary
from published import ALPHA, DROPOUT, HandWritten, Published, copy_sharing_weights, published_kl, with_adapter
from setting import Ours, Setting
from torch import Tensor

from saelora.core.head import head_of
from saelora.core.kl_head import kl_head
from saelora.manifest import environment, write_json
from saelora.objectives.useful import useful_flops

MEMORY_REPEATS = 3


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_options(parser)
    parser.add_argument("--rows", type=int, default=1, help="per step")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument(
        "--published",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also the published step, which is slow",
    )
    parser.add_argument("--profile", action="store_true", help="also print where our step's time goes, by operation")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    setting = settings.make(args, args.rows * (args.repeats + 1), args.context)
    unused = ("json", "profile", *(("model", "sae", "data") if args.shape else ("shape",)))
    inputs = {k: v for k, v in vars(args).items() if k not in unused}
    inputs |= {"device": str(setting.device), "dtype": str(setting.model.dtype), "hookpoint": str(setting.hookpoint)}
    inputs |= {"d_sae": setting.sae.cfg.d_sae, "sae_kind": setting.sae.cfg.architecture()}
    out: dict[str, Any] = {"inputs": inputs, "environment": environment()}
    print(out["inputs"], out["environment"], sep="\n", flush=True)
    arms = make_arms(setting, args.rank, args.published)
    taken = time_arms(arms, setting, args)
    out |= speedups(taken)
    out["model_flops_fraction"] = flops_fraction(taken, arms["ours_after"], setting, args)
    out |= memory(arms, setting, args)
    out["seconds"] = {name: summary(values) for name, values in taken.items()}
    for name, value in out.items():
        if name not in ("inputs", "environment", "seconds"):
            print(line(name, value))
    for name, value in out["seconds"].items():
        print(line(f"seconds {name}", value))
    if args.json:
        write_json(args.json, out)
    if args.profile:
        print(profile(arms["ours_after"], setting.rows[: args.rows]))
    return out


def make_arms(setting: Setting, rank: int, published: bool = True) -> dict[str, Any]:
    """Name -> an object with step(rows); all share their weights, but that the published arms run in float32."""
    arms: dict[str, Any] = {
        name: Ours(setting, name.removeprefix("ours_"), [rank]) for name in ("ours_after", "ours_all")
    }
    kept = setting.token_mask.exempt_ids
    common: dict[str, Any] = {"sae": setting.sae, "layer": setting.hookpoint.layer, "kept_ids": kept}
    plain = with_adapter(copy_sharing_weights(setting.model), "after", setting.hookpoint, rank=rank, alpha=ALPHA)
    arms["handwritten_after"] = HandWritten(plain, **common, autocast=setting.autocast)
    if not published:
        return arms
    source = setting.model
    if setting.autocast is not None:
        needed = 4 * sum(p.numel() for p in source.parameters())
        if needed > 0.5 * free_bytes(setting.device):
            print(f"no published arms: a float32 copy of the model needs {needed / 1e9:.0f} GB")
            return arms
        source = copy.deepcopy(source).float()
    for placement in ("after", "all"):
        copied = copy_sharing_weights(source)
        model = with_adapter(copied, placement, setting.hookpoint, rank=rank, alpha=ALPHA, dropout=DROPOUT)
        arms[f"published_{placement}"] = Published(model, **common)
    return arms


def time_arms(arms: dict[str, Any], setting: Setting, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds by arm; in every round all arms take the same rows. A large product and PEFT's switch run along."""
    batches = {name: iter(setting.rows.split(args.rows)) for name in arms}
    calls: dict[str, Any] = {name: lambda n=name: arms[n].step(next(batches[n])) for name in arms}
    a, b = _large_factors(setting)
    calls["large_product"] = lambda: torch.mm(a, b)
    handwritten = arms["handwritten_after"].model

    def switch() -> None:
        with handwritten.disable_adapter():
            pass

    calls["peft_disable_adapter"] = switch
    return interleaved(calls, args.repeats, setting.device)


def _large_factors(setting: Setting) -> tuple[Tensor, Tensor]:
    """Square factors in the precision that our step computes in."""
    size = 128 if setting.model.config.hidden_size < 128 else 8192 if setting.device.type == "cuda" else 2048
    dtype = setting.autocast or setting.model.dtype
    a = torch.randn(size, size, device=setting.device, dtype=dtype)
    return a, torch.randn_like(a)


def speedups(taken: dict[str, list[float]]) -> dict[str, Any]:
    found = {"speedup_handwritten_after": ratios(taken["handwritten_after"], taken["ours_after"])}
    for placement in ("after", "all"):
        if f"published_{placement}" in taken:
            ours = taken[f"ours_{placement}"]
            found[f"speedup_published_{placement}"] = ratios(taken[f"published_{placement}"], ours)
    return found


def flops_fraction(
    taken: dict[str, list[float]], ours: Ours, setting: Setting, args: argparse.Namespace
) -> dict[str, Any]:
    needed = args.rows * args.context * (useful_flops(ours.distill, args.context) or math.nan)
    size = len(_large_factors(setting)[0])
    rates = [2 * size**3 / seconds for seconds in taken["large_product"]]
    found = summary([needed / s / rate for s, rate in zip(taken["ours_after"], rates, strict=True)])
    return {**found, "useful_flops_per_step": needed, "large_product_flops_per_second": summary(rates)}


def memory(arms: dict[str, Any], setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of a step and of the loss alone; every measurement starts without gradients held over from the last."""
    rows = setting.rows[: args.rows]
    calls: dict[str, Any] = {"ours": lambda: _clean_step(arms["ours_after"], rows)}
    if "published_after" in arms:
        calls["published"] = lambda: _clean_step(arms["published_after"], rows)
    calls["our_loss"], calls["published_loss"] = loss_calls(setting, rows)
    peaks: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(MEMORY_REPEATS):
        for name, call in calls.items():
            peaks[name].append(peak_bytes(call, setting.device))
    found: dict[str, Any] = {"peak_bytes": {name: summary(values) for name, values in peaks.items()}}
    if "published" in peaks and min(peaks["published"]) > 0:
        found["peak_memory_ratio"] = ratios(peaks["ours"], peaks["published"])
    if min(peaks["published_loss"]) > 0:
        found["loss_memory_ratio"] = ratios(peaks["our_loss"], peaks["published_loss"])
    return found


def _clean_step(arm: Any, rows: Tensor) -> None:
    arm.step(rows)
    for parameter in arm.parameters():
        parameter.grad = None


def loss_calls(setting: Setting, rows: Tensor) -> tuple[Any, Any]:
    """The loss and its gradient with respect to the student's final hidden states: ours, and the published one."""
    head = head_of(setting.model)
    shape = (rows.numel(), head.weight.shape[1])
    teacher, student = (torch.randn(shape, device=rows.device, dtype=setting.model.dtype) for _ in range(2))

    def ours() -> None:
        kl_head(student.clone().requires_grad_(), teacher, head).kl.backward()

    def published() -> None:
        with torch.no_grad():
            teacher_logits = head.logits(teacher)
        published_kl(teacher_logits, head.logits(student.clone().requires_grad_())).backward()

    return ours, published


def profile(arm: Any, rows: Tensor) -> str:
    """Time by operation over two steps."""
    from torch.profiler import ProfilerActivity

    on_gpu = rows.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(2):
            arm.step(rows)
    return found.key_averages().table(sort_by=f"self_{'cuda' if on_gpu else 'cpu'}_time_total", row_limit=25)


def line(name: str, value: dict[str, Any]) -> str:
    if "median" not in value:
        return f"{name}: " + ", ".join(f"{key} {item['median'] / MIB:.0f} MiB" for key, item in value.items())
    low, high = value["spread"]
    return f"{name:32s} {value['median']:.4g}  ({low:.4g} to {high:.4g})"


if __name__ == "__main__":
    main()
