"""What SAEBench is said to have shown."""

from saelora.evals.saebench.result import SAEBench
from saelora.evals.saebench.summary import lines
from saelora.records import from_json


def metric(name, metric, base, adapted, once=False):
    return {
        "eval": name,
        "metric": metric,
        "category": "",
        "hookpoint": "layers.1.resid_post",
        "base": base,
        "adapted": adapted,
        "can_change": not once,
        "measured_once": once,
    }


LOSSES = [metric("core", "ce_loss_with_sae", 3.5, 3.2), metric("core", "ce_loss_without_sae", 3.0, 3.05)]


def said(metrics=(), cannot=(), skipped=()):
    result = {"metrics": list(metrics), "cannot_change": list(cannot), "why": "adapters are in layers 2 to 3"}
    found = {**result, "skipped": list(skipped), "data": "sotu", "sae_bench": "0.6.0", "command": ""}
    return lines(from_json(SAEBench, found, "saebench.json", ""))


def test_what_cannot_change_is_said_first_and_plainly() -> None:
    text = said(LOSSES, ["sparse_probing", "scr", "tpp"])
    assert text[0].startswith("Sparse probing, SCR and TPP cannot change: adapters are in layers 2 to 3.")
    assert said(LOSSES)[0].startswith("Every evaluation can change")


def test_core_is_set_against_the_original_model_not_the_adapted_one() -> None:
    [line] = [line for line in said(LOSSES) if line.startswith("Through the SAE")]
    assert "the original model has 3.0000" in line
    assert "not with the original" in line


def test_figures_measured_once_stand_for_both_models() -> None:
    once = metric("sparse_probing", "sae_top_1_test_accuracy", 0.75, 0.75, once=True)
    assert any("0.75 (both models)" in line for line in said([once]))
    twice = metric("tpp", "tpp_threshold_20_total_metric", 0.1, None)
    assert any("0.1 original, undefined adapted" in line for line in said([twice]))


def test_what_was_skipped_is_named_with_its_reason() -> None:
    text = said(skipped=[{"eval": "absorption", "hookpoint": "layers.1.resid_post", "why": "too few letters"}])
    assert "Absorption was skipped: too few letters." in text
    assert "SAEBench gave no figure." in text
