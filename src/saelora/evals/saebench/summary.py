"""What --parts saebench found, in plain words."""

from saelora.evals.saebench.result import Metric, SAEBench

# the one or two figures of each evaluation that SAEBench's own plots show
MAIN = {
    "core": ("ce_loss_score", "ce_loss_with_sae", "explained_variance", "l0"),
    "sparse_probing": ("sae_top_1_test_accuracy", "sae_top_5_test_accuracy"),
    "scr": ("scr_metric_threshold_20",),
    "tpp": ("tpp_threshold_20_total_metric",),
    "absorption": ("mean_full_absorption_score",),
}


def lines(result: SAEBench) -> list[str]:
    """What cannot change first, then the figures, then what was skipped."""
    said = []
    metrics = result.metrics
    if result.cannot_change:
        said.append(f"{_listed(result.cannot_change)} cannot change: {result.why}. One figure stands for both models.")
    elif metrics:
        said.append(f"Every evaluation can change: {result.why}.")
    said += _core(metrics)
    for name in MAIN:
        shown = [_figure(row) for row in metrics if row.eval == name and row.metric in MAIN[name]]
        if shown:
            said.append(f"{_name(name)}: {'; '.join(shown)}.")
    for skip in result.skipped:
        said.append(f"{_name(skip.eval)} was skipped: {skip.why}.")
    if not metrics:
        said.append("SAEBench gave no figure.")
    said.append(f"SAEBench {result.sae_bench}; data: {result.data}. SAEBench gives no intervals.")
    return said


def _core(metrics: list[Metric]) -> list[str]:
    """The losses that core compares, with its baseline named: it is not the original model."""
    rows = {row.metric: row for row in metrics if row.eval == "core"}
    with_sae, without = rows.get("ce_loss_with_sae"), rows.get("ce_loss_without_sae")
    if with_sae is None or without is None or None in (with_sae.base, with_sae.adapted, without.base):
        return []
    return [
        f"Through the SAE, cross entropy is {with_sae.base:.4f} nats without the adapter and "
        f"{with_sae.adapted:.4f} with it; the original model has {without.base:.4f}. These are few texts without "
        f"an interval: the share of the gap closed is in the loss part. ce_loss_score compares each model with itself "
        f"without the SAE, the adapted one too, and not with the original."
    ]


def _figure(row: Metric) -> str:
    at = f" at {row.hookpoint}" if row.hookpoint else ""
    if row.measured_once:
        return f"{row.metric}{at} {_number(row.base)} (both models)"
    return f"{row.metric}{at} {_number(row.base)} original, {_number(row.adapted)} adapted"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _name(name: str) -> str:
    known = {"core": "Core", "sparse_probing": "Sparse probing", "scr": "SCR", "tpp": "TPP", "absorption": "Absorption"}
    return known.get(name, name)


def _listed(names: list[str]) -> str:
    shown = [_name(name) if i == 0 or name in ("scr", "tpp") else _name(name).lower() for i, name in enumerate(names)]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
