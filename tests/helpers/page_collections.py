"""Folders of a sweep and of a comparison, made up but of the form of real ones."""

import json
from pathlib import Path
from typing import Any

from compared_runs import race
from saelora.reporting.comparison.run import ComparisonRun
from saelora.reporting.sweep_point import SweepPoint

ABOUT = {
    "model": {"ref": "m", "fingerprint": "sha256:1", "dtype": "float32"},
    "saes": [],
    "token_policy": {"exempt_ids": [1]},
    "heldout": {"fingerprint": "00ff", "n_rows": 4, "context": 32},
    "autocast": None,
}
ALIKE = ("layer", "n_saes", "d_sae", "fvu", "l0", "dead_frac", "rank", "alpha", "adapted_layer", "lr")


def sweep_point(x: float, y: float, *, key: str = "rank", seed: int = 0, **more: Any) -> SweepPoint:
    """A point at ``x`` of ``key`` that closes the share ``y`` of a gap of 0.2 nats."""
    gain = {"ce_base": 3.0, "ce_sae": 3.2, "ce_adapted": 3.2 - 0.2 * y, "ce_gain": 0.2 * y, "gap_closed": y}
    interval = {name: [value - 0.01, value + 0.02] for name, value in gain.items()}
    config = {key: x, "seed": seed, **{k: v for k, v in more.items() if k != "status"}}
    same = {"model": "m", "sae": ["x"], "hookpoint": ["layers.1.resid_post"], "placement": "after"}
    values = {"id": f"{x}-{seed}", "status": "done", key: x, "seed": seed, **gain, "ci95": interval}
    ones = dict.fromkeys(ALIKE, 1)
    return SweepPoint.model_validate({**same, **ones, **values, "config": config, "about": ABOUT, **more})


def write_sweep(folder: Path) -> Path:
    """Ranks 1, 16 and 256, of which 16 closes most."""
    points = [sweep_point(x, y, ce_gap=0.2) for x, y in ((1, 0.1), (16, 0.4), (256, 0.3))]
    return _written(folder, "points", {"title": "Ranks <b>", "x": "rank", "points": [p.to_json() for p in points]})


def write_comparison(folder: Path) -> Path:
    """SAEs and adapters, two seeds."""
    runs: list[ComparisonRun] = [*race(), *race(1, 1.1)]
    return _written(folder, "runs", {"title": "Ways <b>", "runs": [run.to_json() for run in runs]})


def _written(folder: Path, inside: str, found: dict[str, Any]) -> Path:
    (folder / inside).mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    return folder
