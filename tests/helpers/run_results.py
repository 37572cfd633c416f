"""Results and a manifest of a finished run, small and round."""

from typing import Any

from saelora.evals.loss_result import RunResult
from saelora.manifest import Manifest

RESULTS: dict[str, Any] = {
    "ce_base": 3.0,
    "ce_sae": 3.25,
    "ce_adapted": 3.15,
    "ce_adapted_clean": 3.01,
    "ce_zero": 5.5,
    "kl_sae": 0.2,
    "kl_adapted": 0.1,
    "kl_adapted_clean": 0.02,
    "kl_zero": 2.5,
    "top1_sae": 0.8,
    "top1_adapted": 0.88,
    "top1_adapted_clean": 0.95,
    "top1_zero": 0.2,
    "ce_gap": 0.25,
    "gap_closed": 0.4,
    "loss_recovered_sae": 0.9,
    "loss_recovered_adapted": 0.94,
    "n_tokens_evaluated": 10_000,
    "n_tokens_trained": 50_000,
    "seconds_training": 100.0,
    "tokens_per_second": 500.0,
    "ci95": {
        "ce_gap": [0.24, 0.26],
        "gap_closed": [0.35, 0.45],
        "ce_base": [2.9, 3.1],
        "ce_sae": [3.15, 3.35],
        "ce_adapted": [3.05, 3.25],
    },
    "saes": {"layers.1.resid_post": {"fvu": 0.2, "l0": 32.0, "dead_frac": 0.0}},
    "history": [
        {"n_tokens": 25_000, "kl": 0.12, "ce": 3.17, "gap_closed": 0.3},
        {"n_tokens": 50_000, "kl": 0.1, "ce": 3.15, "gap_closed": 0.41},
    ],
}

MANIFEST: dict[str, Any] = {
    "model": {"ref": "org/model"},
    "saes": [
        {
            "ref": "org/sae",
            "hookpoint": "layers.1.resid_post",
            "architecture": "topk",
            "d_sae": 64,
            "fingerprint": "sha256:12",
        }
    ],
    "config": {"rank": 8, "placement": "after"},
    "token_policy": {"exempt_ids": [1, 2], "first": False, "padding": True},
}


def without(results: dict[str, Any], *arms: str) -> dict[str, Any]:
    """Results in which these arms (or whole keys, or kinds of key) were not measured."""

    def kept(name: str) -> bool:
        return not any(name in (arm, f"ce_{arm}", f"kl_{arm}", f"top1_{arm}") for arm in arms) and not any(
            name.startswith(arm) or name == f"loss_recovered_{arm}" for arm in arms
        )

    left = {name: value for name, value in results.items() if kept(name)}
    return {**left, "ci95": {name: value for name, value in results["ci95"].items() if kept(name)}}


def result(values: dict[str, Any] = RESULTS) -> RunResult:
    return RunResult.model_validate(values)


def manifest(values: dict[str, Any] = MANIFEST) -> Manifest:
    return Manifest.model_validate(values)
