"""saelora evaluate --parts tokens drift, on the tiny workspace."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workspace as ws
from saelora.cli import main
from saelora.evals.intervals import ratio


def evaluate(*words: str, **options: Any) -> int:
    return main(["evaluate", *words, *ws.as_flags(options), "--quiet"])


def strictly(text: str) -> Any:
    """JSON as its standard has it, without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def folder(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose losses, tokens and drift have been measured."""
    run = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(adapted, run)
    options = {"text_rows": 3, "passages": 2, "frequency_tokens": 2000}
    assert evaluate("--adapter", str(run), "--parts", "loss", "tokens", "drift", **options) == 0
    return run


def part(folder: Path, name: str) -> dict[str, Any]:
    return strictly((folder / "evals" / f"{name}.json").read_text())["result"]


def test_tokens_agree_with_the_losses(folder: Path) -> None:
    losses, tokens = part(folder, "loss"), part(folder, "tokens")
    assert tokens["n_predictions"] == losses["n_tokens_evaluated"]
    assert tokens["change"]["mean"]["value"] == pytest.approx(losses["ce_adapted"] - losses["ce_sae"], rel=1e-4)
    assert tokens["cost"]["mean"]["value"] == pytest.approx(losses["ce_gap"], rel=1e-4)
    for name in ("by_position", "by_frequency", "by_recon_error"):
        assert sum(each["n"] for each in tokens[name]) == tokens["n_predictions"]
        for arm in ("ce_base", "ce_sae", "ce_adapted"):
            total = sum(each["n"] * each[arm]["value"] for each in tokens[name])
            assert total / tokens["n_predictions"] == pytest.approx(losses[arm], rel=1e-4)
    counts = tokens["histogram"]
    sides = {side: sum(counts[side]) + counts[f"{side}_below"] + counts[f"{side}_above"] for side in ("helped", "hurt")}
    for side, n in sides.items():
        assert n == pytest.approx(tokens[f"share_{side}"]["value"] * tokens["n_predictions"])
    assert tokens["recon_error_of"] == "layers.1.resid_post"
    assert tokens["frequency_counted_on"].startswith("1,984 tokens of the training part of ")


def test_text_is_whole_rows_whose_tokens_all_have_a_spelling(folder: Path) -> None:
    tokens = part(folder, "tokens")
    assert len(tokens["text"]) == 3
    assert [len(tokens["passages"][name]) for name in ("most_helped", "most_hurt")] == [2, 2]
    for passage in (*tokens["text"], *tokens["passages"]["most_helped"], *tokens["passages"]["most_hurt"]):
        assert len(passage["ids"]) == ws.CONTEXT
        for values in (passage["counted"], *passage["ce"].values(), *passage["kl"].values(), *passage["top"].values()):
            assert len(values) == ws.CONTEXT
        used = {i for arm in passage["top"].values() for likeliest in arm[1:] for i, _ in likeliest}
        assert {str(i) for i in used | set(passage["ids"])} <= tokens["vocab"].keys()
    spelt = [tokens["vocab"][str(i)] for i in tokens["text"][0]["ids"]]
    assert spelt[0] == "<s>"
    assert " " in "".join(spelt)
    by_hand = [passage["ce"] for passage in tokens["text"]]
    assert all(isinstance(x, float) for ce in by_hand for arm in ce.values() for x in arm[1:])


def test_the_passages_are_of_the_largest_changes_and_in_order(folder: Path) -> None:
    found = part(folder, "tokens")["passages"]
    for name, sign in (("most_helped", 1), ("most_hurt", -1)):
        sizes = []
        for passage in found[name]:
            ce, at = passage["ce"], passage["focus"]
            assert passage["counted"][at]
            change = sign * (np.array(ce["adapted"][1:]) - np.array(ce["sae"][1:]))
            counted = np.array(passage["counted"][1:])
            assert change[at - 1] == pytest.approx(change[counted].min(), abs=1e-3)
            sizes.append(change[at - 1])
        assert sizes == sorted(sizes)
        assert sizes[-1] < 0


def test_drift_is_of_every_layer_and_the_latents_of_an_sae_below_the_adapters_are_identical(folder: Path) -> None:
    drift = part(folder, "drift")
    assert [each["layer"] for each in drift["layers"]] == list(range(ws.N_LAYERS))
    assert drift["latents"]["layers.1.resid_post"]["identical"] is True
    sae = part(folder, "loss")["saes"]["layers.1.resid_post"]
    assert drift["latents"]["layers.1.resid_post"]["fvu"]["base"]["value"] == pytest.approx(sae["fvu"], rel=1e-4)
    assert drift["latents"]["layers.1.resid_post"]["l0"]["base"] == pytest.approx(sae["l0"])
    assert drift["layers"][0]["l2"]["adapted"] == ratio([0.0], [1.0])
    assert drift["layers"][-1]["l2"]["adapted_clean"]["value"] > 0


def test_latents_above_an_adapter_are_not_identical(workspace: ws.Workspace, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert workspace.adapt(out, "--quiet", placement="all", tokens=8 * ws.CONTEXT) == 0
    assert evaluate("--adapter", str(out), "--parts", "drift", eval_tokens=4 * ws.CONTEXT) == 0
    latents = part(out, "drift")["latents"]["layers.1.resid_post"]
    assert latents["identical"] is False
    assert latents["max_abs_difference"] > 0
    assert latents["jaccard"]["value"] < 1


def test_the_findings_are_told_on_the_terminal(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"out": tmp_path / "evals", "eval_tokens": 2 * ws.CONTEXT, "text_rows": 0, "passages": 0}
    words = ("--adapter", str(adapted), "--parts", "tokens", "drift")
    assert evaluate(*words, frequency_tokens=0, **few) == 0
    said = capsys.readouterr().out
    assert "TOKENS\nOn average the adapter" in said
    assert "identical bit for bit" in said
    tokens = strictly((tmp_path / "evals" / "tokens.json").read_text())["result"]
    assert tokens["by_frequency"] == tokens["text"] == tokens["passages"]["most_hurt"] == []
    assert tokens["vocab"] == {}
    assert tokens["frequency_counted_on"] == "nothing"


def test_a_negative_number_of_passages_is_refused_before_anything_is_loaded(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--adapter", str(adapted), "--parts", "tokens")
    assert evaluate(*words, passages=-1, out=tmp_path / "evals") == 2
    assert "passages is -1, expected 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "evals").exists()
