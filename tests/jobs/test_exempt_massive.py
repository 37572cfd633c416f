"""--exempt massive through the commands: measured once, written down, and taken up again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import workspace as ws
from saelora.cli import main

MASSIVE: dict[str, Any] = {"exempt": ["bos", "eos", "pad", "massive:1.2"]}  # so low that some tokens here are above
HERE = "layers.1.resid_post"


def evaluate(capsys: pytest.CaptureFixture[str], *words: str, **options: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *words, *ws.as_flags(options), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def spared(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run. Leave it as it is."""
    out = tmp_path_factory.mktemp("spared") / "run"
    assert workspace.adapt(out, "--quiet", **MASSIVE) == 0
    return out


def test_limits_are_written_down_and_taken_up_again(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert workspace.adapt(out, **MASSIVE) == 0
    printed = capsys.readouterr().out
    manifest, results = (json.loads((out / name).read_text()) for name in ("saelora.json", "results.json"))
    massive, own = manifest["token_policy"]["massive"], results["saes"][HERE]
    assert massive == {"multiple": 1.2, "limits": {HERE: own["massive_limit"]}}
    assert 0 < own["n_massive"] < own["n_positions"]
    told = f"{own['n_massive']} of {own['n_positions']} positions spared as massive (norm above "
    assert f"{told}{own['massive_limit']:,.4g})" in printed
    assert "massive ones (norm above 1.2 times the median" in (out / "README.md").read_text()
    again = evaluate(capsys, "--adapter", str(out))
    assert again["saes"] == results["saes"]
    assert again["about"]["token_policy"]["massive"] == massive
    manifest["token_policy"]["massive"]["limits"][HERE] *= 1.01
    (out / "saelora.json").write_text(json.dumps(manifest))
    assert evaluate(capsys, "--adapter", str(out))["saes"][HERE]["massive_limit"] == own["massive_limit"] * 1.01
    other = evaluate(capsys, "--adapter", str(out), exempt=["bos", "eos", "pad", "massive:1.3"])
    assert other["saes"][HERE]["massive_limit"] == pytest.approx(own["massive_limit"] * 1.3 / 1.2)


def test_an_evaluation_by_itself_measures_the_same_limit(
    workspace: ws.Workspace, spared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.loads((spared / "results.json").read_text())
    found = evaluate(capsys, str(workspace.model), sae=workspace.sae, data=workspace.data, **ws.COMMON, **MASSIVE)
    assert found["saes"] == recorded["saes"]
    assert found["ce_sae"] == recorded["ce_sae"]
    assert found["n_tokens_evaluated"] == recorded["n_tokens_evaluated"]


def test_a_run_that_is_resumed_has_the_same_limit(workspace: ws.Workspace, spared: Path, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "other", seed=1, **MASSIVE) == 0
    a, b = (json.loads((run / "saelora.json").read_text())["token_policy"] for run in (spared, tmp_path / "other"))
    assert a == b


def test_an_sae_is_trained_and_measured_without_them(workspace: ws.Workspace, tmp_path: Path) -> None:
    found = {}
    for name, options in (("massive", MASSIVE), ("plain", {})):
        assert workspace.train_sae(tmp_path / name, "--quiet", **options) == 0
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert 0 < found["massive"]["n_massive"] < found["massive"]["n_positions"]
    assert found["massive"]["n_tokens_trained"] < found["plain"]["n_tokens_trained"]
    assert found["massive"]["about"]["token_policy"]["massive"]["limits"] == {HERE: found["massive"]["massive_limit"]}
    assert "massive:1.2" in (tmp_path / "massive" / "README.md").read_text()


def test_points_of_a_sweep_at_several_layers_have_limits_of_their_own(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saes = [workspace.sae, ws.write_sae(tmp_path / "sae2", layer=2, seed=5)]
    base = {k: v for k, v in ws.ADAPT.items() if k not in ("history_points", "history_tokens")}
    base |= {"model": str(workspace.model), "data": str(workspace.data), "tokens": 16 * ws.CONTEXT, **MASSIVE}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"title": "layers", "base": base, "points": [{"sae": [str(sae)]} for sae in saes]}))
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["points"]
    for row, sae, layer in zip(rows, saes, (1, 2), strict=True):
        alone = evaluate(capsys, str(workspace.model), sae=sae, data=workspace.data, **ws.COMMON, **MASSIVE)
        own = alone["saes"][f"layers.{layer}.resid_post"]
        assert (row["n_massive"], row["fvu"]) == (own["n_massive"], pytest.approx(own["fvu"], rel=1e-9))
        assert row["ce_sae"] == alone["ce_sae"]
        assert own["n_massive"] > 0


def test_a_multiple_that_is_none_is_refused_in_one_line(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.adapt(tmp_path / "run", exempt=["bos", "massive:0.5"]) == 2
    assert "above 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_parts_beyond_the_losses_run(spared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(spared, tmp_path / "run"))
    found = evaluate(capsys, "--adapter", str(out), "--parts", "tokens", "drift", "faithfulness")
    own = json.loads((out / "results.json").read_text())["saes"][HERE]
    latents = found["drift"]["latents"][HERE]
    assert latents["identical"]
    assert latents["fvu"]["base"]["value"] == pytest.approx(own["fvu"], rel=1e-4)
