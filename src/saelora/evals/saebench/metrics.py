"""SAEBench's result files, read back into one table; and which of its metrics an adapter can change at all."""

from collections.abc import Iterable
from pathlib import Path

from saelora.errors import InputError
from saelora.evals.saebench.result import Metric
from saelora.manifest import read_json
from saelora.models.hookpoints import Hookpoint
from saelora.reporting.format import finite

EVALS = ("core", "sparse_probing", "scr", "tpp", "absorption")
DOWNSTREAM = ("model_behavior_preservation", "model_performance_preservation")  # core's, of the output
_UNINTERESTING = ("token_stats",)  # settings, not findings


def reaches(hookpoint: Hookpoint, adapted_layers: Iterable[int]) -> bool:
    """Whether adapters in these layers can change the activation at a hookpoint: some lie in front of it."""
    last = hookpoint.layer - 1 if hookpoint.site == "resid_pre" else hookpoint.layer
    return any(layer <= last for layer in adapted_layers)


def cannot_change(hookpoints: Iterable[Hookpoint], adapted_layers: Iterable[int], evals: Iterable[str]) -> list[str]:
    """The evaluations whose every number is the same with the adapter and without it.

    All but core read activations at the hookpoint alone (paper, section on SAEBench), and so do core's figures of the
    SAE itself; only core's losses look at what the model says in the end.
    """
    layers = list(adapted_layers)
    if any(reaches(hookpoint, layers) for hookpoint in hookpoints):
        return []
    return [name for name in evals if name != "core"]


def can_change(name: str, category: str, reached: bool) -> bool:
    """Whether an adapter can change one metric."""
    return reached or (name == "core" and category in DOWNSTREAM)


def read_metrics(folder: Path) -> dict[str, dict[str, float | None]]:
    """One evaluation's metrics, {category: {name: value}}; nothing where it has no result file.

    Raises:
        InputError: the file is damaged, or not what SAEBench writes.
    """
    found = sorted(folder.rglob("*_eval_results.json"))  # SCR and TPP have a folder more
    if not found:
        return {}
    metrics = read_json(found[0]).get("eval_result_metrics")
    if not isinstance(metrics, dict):
        raise InputError(f"{found[0]} holds no eval_result_metrics: expected a result file of SAEBench 0.6")
    return {
        category: {name: finite(value) for name, value in values.items() if value is not None}
        for category, values in metrics.items()
        if category not in _UNINTERESTING
    }


def table(
    base: Path, adapted: Path, hookpoints: Iterable[Hookpoint], evals: Iterable[str], adapted_layers: Iterable[int]
) -> list[Metric]:
    """Base and adapted model side by side.

    An evaluation that the adapter cannot change and that was not run again has the base model's values in both.
    """
    rows, layers = [], list(adapted_layers)
    for hookpoint in hookpoints:
        reached = reaches(hookpoint, layers)
        for name in evals:
            before = read_metrics(base / str(hookpoint) / name)
            after = read_metrics(adapted / str(hookpoint) / name)
            measured_once = not after and not reached and name != "core"
            for category, values in before.items():
                for metric, value in values.items():
                    second = value if measured_once else after.get(category, {}).get(metric)
                    rows.append(
                        Metric(
                            eval=name,
                            metric=metric,
                            category=category,
                            hookpoint=str(hookpoint),
                            base=value,
                            adapted=second,
                            can_change=can_change(name, category, reached),
                            measured_once=measured_once,
                        )
                    )
    return rows
