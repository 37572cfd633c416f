"""saelora evaluate --adapter: it is measured with what it was made with, or the results say otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import workspace as ws
from saelora.cli import main
from saelora.identity import About, ModelId, heldout_rows
from saelora.jobs.recorded import check_made_for
from saelora.manifest import Manifest

FEW = {"eval_tokens": 3 * ws.CONTEXT}


def evaluate(*words: str, **options: Any) -> int:
    return main(["evaluate", *words, *ws.as_flags({**FEW, **options}), "--quiet"])


def edit(run: Path) -> None:
    weights = load_file(run / "adapter_model.safetensors")
    next(iter(weights.values())).mul_(1.01)
    save_file(weights, run / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layer", [1, 2])
# SPEC 12.6
def test_an_sae_that_the_adapter_was_not_made_with_is_refused_unless_forced(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: int
) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=layer, seed=5)
    assert evaluate("--adapter", str(adapted), sae=other) == 2
    said = ws.one_line(capsys)
    assert "was made with SAE" in said
    assert f"layers.{layer}.resid_post" in said
    assert "--other-weights" in said
    assert evaluate("--adapter", str(adapted), "--other-weights", "--json", sae=other) == 0
    about = json.loads(capsys.readouterr().out)["about"]
    assert len(about["other_weights"]) == 1
    assert str(other) in about["other_weights"][0]


def test_the_runs_own_sae_by_another_path_needs_no_force(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = shutil.copytree(workspace.sae, tmp_path / "sae")
    model = shutil.copytree(workspace.model, tmp_path / "model")
    assert evaluate(str(model), "--adapter", str(adapted), "--json", sae=same) == 0
    assert not {"other_weights", "unchecked"} & json.loads(capsys.readouterr().out)["about"].keys()


def test_the_sae_at_another_hookpoint_is_refused(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--adapter", str(adapted), hookpoint="layers.2.resid_post") == 2
    assert "leave out --sae and --hookpoint" in ws.one_line(capsys)


# SPEC 12.6
def test_a_model_that_is_named_and_is_another_is_refused(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(workspace.model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = 2 * weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert evaluate(str(model), "--adapter", str(adapted)) == 2
    assert "was made with model" in ws.one_line(capsys)


def model(revision: str | None, fingerprint: str | None = None) -> ModelId:
    return ModelId(ref="owner/model", revision=revision, fingerprint=fingerprint, dtype="float32")


def test_hub_models_are_told_apart_by_their_commit() -> None:
    from saelora.errors import InputError

    recorded = Manifest(model=model("c0ffee"), saes=[], config={})
    same, another = About(model=model("c0ffee"), saes=[]), About(model=model("badcafe"), saes=[])
    assert check_made_for(same, recorded, frozenset(), "RUN", False) == ([], [])
    with pytest.raises(InputError, match="was made with model owner/model"):
        check_made_for(another, recorded, frozenset({"model"}), "RUN", False)
    (forced,), unchecked = check_made_for(another, recorded, frozenset(), "RUN", True)
    assert "badcafe" in forced
    assert unchecked == []
    unknown = About(model=model(None, "sha256:1"), saes=[])
    forced_none, unchecked = check_made_for(unknown, recorded, frozenset(), "RUN", False)
    assert (forced_none, len(unchecked)) == ([], 1)


def test_an_adapter_that_was_changed_after_its_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run)
    assert evaluate("--adapter", str(run)) == 2
    assert "has changed since its run ended" in ws.one_line(capsys)
    assert evaluate("--adapter", str(run), "--other-weights", "--json") == 0
    assert "its run ended with" in json.loads(capsys.readouterr().out)["about"]["other_weights"][0]


def test_an_adapter_without_a_manifest_is_measured_and_what_cannot_be_checked_is_said(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapted / name, tmp_path / "bare" / name)
    own = {"sae": workspace.sae, "data": workspace.data, **ws.COMMON}
    words = [str(workspace.model), "--adapter", str(tmp_path / "bare"), "--json", *ws.as_flags(own)]
    assert main(["evaluate", *words]) == 0
    out, err = capsys.readouterr()
    results, trained = json.loads(out), json.loads((adapted / "results.json").read_text())
    assert results["ce_adapted"] == trained["ce_adapted"]
    assert "not checked: model, SAEs and text" in err
    assert "it has no saelora.json" in results["about"]["unchecked"][0]


def test_what_a_manifest_may_lack_is_not_missed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((run / "saelora.json").read_text())
    del manifest["model"]["revision"], manifest["method"]
    (run / "saelora.json").write_text(json.dumps(manifest))
    assert main(["evaluate", "--adapter", str(run), "--json", "--quiet"]) == 0
    trained = json.loads((run / "results.json").read_text())
    assert json.loads(capsys.readouterr().out)["ce_adapted"] == trained["ce_adapted"]


def test_a_trained_sae_takes_no_other_ones_place(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "run", ws.write_sae(tmp_path / "sae", layer=2)
    assert workspace.adapt(out, "--quiet", method="linear", tokens=4 * ws.CONTEXT) == 0
    assert evaluate("--adapter", str(out), "--other-weights", sae=other) == 2
    assert "trained an SAE at layers.1.resid_post" in ws.one_line(capsys)
    ws.write_sae(out / "sae", layer=1, seed=3)
    assert evaluate("--adapter", str(out), "--other-weights", "--json") == 0
    assert "a trained SAE that has changed" in json.loads(capsys.readouterr().out)["about"]["other_weights"][0]


def test_results_say_which_rows_they_were_measured_on(
    workspace: ws.Workspace, adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from saelora.assemble import validation_rows
    from saelora.config import build
    from saelora.jobs.evaluate import Config
    from saelora.models.loading import load_model

    trained = json.loads((adapted / "results.json").read_text())["about"]
    assert main(["evaluate", "--adapter", str(adapted), "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)["about"]
    assert again == trained
    config = build(Config, {"data": str(workspace.data), **ws.COMMON})
    rows = validation_rows(config, load_model(str(workspace.model), device="cpu"))
    assert trained["heldout"] == heldout_rows(rows).to_json()
    assert trained["heldout"]["context"] == ws.CONTEXT
    rows[0, 3] += 1
    assert heldout_rows(rows).fingerprint != trained["heldout"]["fingerprint"]
    assert heldout_rows(rows[:, :-1].contiguous()).fingerprint != heldout_rows(rows).fingerprint
    assert evaluate("--adapter", str(adapted), "--json") == 0
    assert json.loads(capsys.readouterr().out)["about"]["heldout"]["fingerprint"] != again["heldout"]["fingerprint"]
