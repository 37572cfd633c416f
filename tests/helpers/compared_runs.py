"""Runs of a comparison made up by hand: 100 tokens a second, a billion operations a token."""

from typing import Any

from saelora.reporting.comparison.run import ComparisonRun

CE_BASE = 3.0
ABOUT = {
    "model": {"ref": "m", "fingerprint": "sha256:1", "dtype": "float32"},
    "token_policy": {"exempt_ids": [1]},
    "heldout": {"fingerprint": "00ff", "n_rows": 4, "context": 32},
    "autocast": None,
}
Points = list[tuple[float, float | None]]  # (seconds, cross entropy)


def costs(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "n_tokens": round(100 * seconds), "model_flops": 1e11 * seconds}


def curve(points: Points) -> list[dict[str, Any]]:
    last = points[-1][0]
    return [{"share": s / last, **costs(s), "ce": ce, "kl": None if ce is None else ce - CE_BASE} for s, ce in points]


def run(name: str, kind: str, method: str, points: Points, **more: Any) -> ComparisonRun:
    """A run whose final figure is its curve's last."""
    ce = points[-1][1]
    final = {"ce_base": CE_BASE, "ce_sae": None, "ce": ce, "ce_clean": CE_BASE, "kl": 0.1, "gap_closed": None}
    final |= {"fvu": 0.1, "l0": 8.0, "dead_frac": 0.0, "jaccard": None, "rate_correlation": None, "ci95": {}}
    given = {"seed": 0, "budget": 1000, "start": None, "lr": 1e-3, "peak_memory_bytes": 2**30, **more}
    final |= given.pop("final", {})
    about = {"id": f"{name}-{given['seed']}-{given['budget']}", "name": name, "kind": kind, "method": method}
    return ComparisonRun.model_validate({**about, "about": ABOUT, "curve": curve(points), **given, "final": final})


def sae(name: str, method: str, points: Points, **more: Any) -> ComparisonRun:
    return run(name, "sae", method, points, **more)


def start_at(seconds: float, share: float, name: str = "local") -> dict[str, Any]:
    return {"name": name, "run": "an id", "share": share, **costs(seconds)}


def method(name: str, points: Points, *, method: str = "lora", **more: Any) -> ComparisonRun:
    """A method that starts at the first point's cross entropy."""
    (_, before), *_, (_, after) = points
    final: dict[str, Any] = {"ce_sae": before, "jaccard": 1.0, "rate_correlation": 1.0}
    if after is not None and before is not None and before > CE_BASE:
        closed = (before - after) / (before - CE_BASE)
        final |= {"gap_closed": closed, "ci95": {"gap_closed": [closed - 0.05, closed + 0.07]}}
    more = {"start": start_at(10, 1.0), **more}
    return run(name, "method", method, points, **{**more, "final": {**final, **more.get("final", {})}})


def closing(name: str, closed: float, seconds: float, **more: Any) -> ComparisonRun:
    """A method that closes so much of a gap of 1 nat in so many seconds."""
    return method(name, [(0, 4.0), (seconds, 4.0 - closed)], **more)


def race(seed: int = 0, slow: float = 1.0) -> list[ComparisonRun]:
    """An SAE trained end to end, a local one, and LoRA from two of its checkpoints."""
    halfway = [(0.0, 3.8), (5 * slow, 3.6), (10 * slow, 3.3)]
    return [
        sae("e2e", "e2e", [(10, 4.0), (20, 3.6), (40, 3.4)], seed=seed, budget=4000),
        sae("local", "local", [(5, 3.8), (10, 3.7)], seed=seed, budget=1000),
        method("lora", halfway, start=start_at(5, 0.5), seed=seed),
        method("lora", [(0, 3.7), (2, 3.5), (10, 3.45)], start=start_at(10, 1.0), seed=seed),
    ]
