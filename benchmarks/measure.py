"""What the benchmarks share: interleaved timing, medians with their spread, peak memory, random SAEs, exponents."""

import ctypes
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

MIB = 2**20


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, [least, most], and the values themselves."""
    return {"median": statistics.median(values), "spread": [min(values), max(values)], "values": list(values)}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Summary of above / below, round by round, so that what slowed a whole round cancels."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def interleaved(arms: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each arm, a b c a b c ..., so that a machine's noise falls on all alike; a first round is dropped."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(repeats + 1):
        for name, call in arms.items():
            spent = seconds(call, device)
            if round_:
                taken[name].append(spent)
    return taken


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most memory held at one time during the call beyond what was held before it, in bytes.

    On a CPU this is the process's resident set (Linux), after freed memory has been given back to the system.
    """
    if device.type == "cuda":
        wait(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return 0
    _give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _give_back_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries keep less
    if trim is not None:
        trim(0)


def _status_bytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def free_bytes(device: torch.device) -> float:
    """Memory that is free on the device; infinite where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return math.inf


def random_sae(kind: str, d_in: int, d_sae: int, k: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A frozen random SAE of SAELens, "topk" or "jumprelu", for inputs of unit variance."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

    common: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": str(device)}
    common["dtype"] = str(dtype).removeprefix("torch.")
    sae: Any = TopKSAE(TopKSAEConfig(k=k, **common)) if kind == "topk" else JumpReLUSAE(JumpReLUSAEConfig(**common))
    with torch.no_grad():
        sae.W_enc.normal_().div_(d_in**0.5)
        sae.W_dec.normal_().div_(d_in**0.5)
    set_active(sae, k)
    return sae.eval().requires_grad_(False)


def set_active(sae: Any, k: int) -> None:
    """Make a random SAE have k active latents a token: exactly (TopK), or on average (JumpReLU)."""
    if sae.cfg.architecture() == "topk":
        sae.cfg.k = k
        sae.activation_fn = sae.get_activation_fn()
    else:
        sae.threshold.data.fill_(statistics.NormalDist().inv_cdf(1 - k / sae.cfg.d_sae))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of the power law values ~ sizes^p, by least squares on logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
