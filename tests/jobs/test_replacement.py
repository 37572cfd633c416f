"""Commands on replacement models, every MLP by a transcoder: modes by name, and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import workspace as ws
from saelora.cli import main


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for layer in range(ws.N_LAYERS):
        ws.write_transcoder(root / f"layers.{layer}.mlp", layer=layer)
    return root


def results_of(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def runs(workspace: ws.Workspace, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All MLPs replaced, by mode."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("cascading", "parallel"):
        more = {"replacement_mode": mode, "placement": "all", "samples": 1}
        assert workspace.adapt(folder / mode, sae=None, transcoders=sets, **more) == 0
    return {mode: folder / mode for mode in ("cascading", "parallel")}


def evaluated(run: Path, out: Path, *flags: str) -> Any:
    assert main(["evaluate", "--adapter", str(run), "--device", "cpu", "--out", str(out), *flags]) == 0
    return results_of(out)


def test_a_run_is_measured_again_in_its_own_mode_or_in_another_that_is_named(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    found = {mode: results_of(run / "results.json") for mode, run in runs.items()}
    assert found["parallel"]["about"]["replacement"] == {"mode": "parallel", "add_error": False}
    assert "replacement" not in found["cascading"]["about"]
    assert results_of(runs["parallel"] / "saelora.json")["config"]["replacement_mode"] == "parallel"
    for mode, other in (("cascading", "parallel"), ("parallel", "cascading")):
        assert found[mode]["gap_closed"] > 0.05
        again = evaluated(runs[mode], tmp_path / f"{mode}.json")
        crossed = evaluated(runs[mode], tmp_path / f"{mode}-{other}.json", "--replacement-mode", other)
        for key in ("ce_sae", "ce_adapted", "kl_adapted"):
            assert again[key] == pytest.approx(found[mode][key], abs=1e-6)
        assert crossed["ce_sae"] == pytest.approx(found[other]["ce_sae"], abs=1e-6)
        assert crossed["ce_adapted"] > found[mode]["ce_adapted"] - 1
        assert abs(crossed["ce_adapted"] - found[mode]["ce_adapted"]) > 1e-4
    weights = [load_file(run / "adapter_model.safetensors") for run in runs.values()]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_with_errors_added_the_spliced_model_costs_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    found = evaluated(runs["cascading"], tmp_path / "added.json", "--add-error")
    assert found["ce_sae"] == found["ce_base"]
    assert found["kl_sae"] == pytest.approx(0, abs=1e-12)
    assert found["top1_sae"] == 1
    assert found["about"]["replacement"] == {"mode": "cascading", "add_error": True}
    assert "gap_closed" not in found
    assert found["kl_adapted"] > 1e-6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replacement_mode": "independent"}, "measure each layer alone by evaluate --parts replacement"),
        ({"flags": "--add-error"}, "adapt without it, and measure with it by evaluate --add-error"),
        ({"transcoder_layers": "0,1", "transcoders": None}, "--transcoder-layers does nothing without --transcoders"),
        (
            {"replacement_mode": "parallel", "transcoders": None},
            "replacement_mode parallel is about transcoders, and there is none among the SAEs",
        ),
    ],
    ids=["independent", "error added", "layers of no set", "no transcoder"],
)
def test_what_no_adapter_can_be_trained_around_is_one_line(
    workspace: ws.Workspace,
    sets: Path,
    tmp_path: Path,
    options: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"sae": None, "transcoders": sets, **options}
    if given["transcoders"] is None:
        given["sae"] = workspace.sae
    flags = [given.pop("flags")] if "flags" in given else []
    assert workspace.adapt(tmp_path / "run", *flags, **given) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


SIZES = ["--replacement-sizes", "1", "2", "30"]
FEW = {"replacement_tokens": 4 * ws.CONTEXT, "device": "cpu"}
OTHERS = {"steering_n": 2, "steering_tokens": 60 * ws.CONTEXT, "steering_window": 8, "ablation_draws": 1}
OTHERS |= {"steering_tuning_texts": 2, "steering_test_texts": 2, "ablation_tokens": 4 * ws.CONTEXT}


def test_all_parts_measure_a_replacement_model_by_the_number_of_its_mlps_too(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"adapter": runs["cascading"], "out": tmp_path / "evals", "parts": "all", **FEW, **OTHERS}
    assert main(["evaluate", *ws.as_flags(given), *SIZES]) == 0
    names = sorted(path.stem for path in (tmp_path / "evals").glob("*.json"))
    assert names == ["drift", "faithfulness", "loss", "replacement", "steering", "tokens"]
    found = results_of(tmp_path / "evals" / "replacement.json")["result"]
    assert [step["n_replaced"] for step in found["curves"]["cascading"]] == [1, 2, ws.N_LAYERS]
    whole = found["curves"]["cascading"][-1]
    assert whole["gap_closed"]["value"] > 0.05
    assert whole["kl"]["adapted"]["value"] < whole["kl"]["sae"]["value"]
    assert len(found["alone"]) == ws.N_LAYERS
    assert f"{ws.N_LAYERS} MLPs replaced: cross entropy" in " ".join(capsys.readouterr().out.split())


def test_drift_says_which_transcoders_read_the_originals_stream(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode, run in runs.items():
        given = {"adapter": run, "out": tmp_path / mode, "parts": "drift", "device": "cpu"}
        assert main(["evaluate", *ws.as_flags(given)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        latents = results_of(tmp_path / mode / "drift.json")["result"]["latents"]
        assert len(latents) == ws.N_LAYERS
        reading = [each.get("reads_original") for each in latents.values()]
        assert reading == [True if mode == "parallel" else None] * ws.N_LAYERS
        assert all(each["identical"] for each in latents.values()) == (mode == "parallel")
        assert ("as they must be where neither" in said) == (
            mode == "cascading" and latents["layers.0.mlp_out"]["identical"]
        )
        assert ("since they read the original's stream" in said) == (mode == "parallel")


def test_a_replacement_model_is_measured_without_an_adapter_too(
    workspace: ws.Workspace, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"transcoders": sets, "data": workspace.data, "context": ws.CONTEXT, "parts": "replacement", **FEW}
    given |= {"validation_fraction": 0.2, "eval_tokens": 8 * ws.CONTEXT}
    words = ["evaluate", str(workspace.model), *SIZES, *ws.as_flags({**given, "out": tmp_path / "found.json"})]
    assert main(words) == 0
    found = results_of(tmp_path / "found.json")["replacement"]
    assert [list(step["ce"]) for step in found["curves"]["parallel"]] == [["sae"]] * 3
    alone = [*words[:-1], str(tmp_path / "alone.json"), "--replacement-mode", "independent"]
    assert main(alone) == 0
    assert results_of(tmp_path / "alone.json")["replacement"]["alone"] == found["alone"]
    assert results_of(tmp_path / "alone.json")["replacement"]["curves"] == {}

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert main([*words[:-1], str(tmp_path / "refused.json"), *more]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "there is no one model with all of them" in refused("--parts", "loss", "--replacement-mode", "independent")
    assert "with add_error they cost nothing: leave it out" in refused("--add-error")
    assert "--parts drift compares an adapted model" in refused("--parts", "drift")
    bare = [word for word in words[:-1] if word not in ("--transcoders", str(sets))]
    capsys.readouterr()
    assert main([*bare, str(tmp_path / "bare.json"), "--sae", str(workspace.sae)]) == 2
    assert "there is no transcoder here: name some with --transcoders" in " ".join(capsys.readouterr().err.split())


def test_a_killed_run_in_either_mode_goes_on_as_if_nothing_had_happened(
    workspace: ws.Workspace, sets: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saelora.objectives.distill import Distill

    step = Distill.step
    for mode, run in runs.items():
        steps = []

        def dies(self: Distill, *args: Any, steps: list[None] = steps) -> Any:
            steps.append(None)
            if len(steps) == 3:
                raise KeyError("killed")
            return step(self, *args)

        out, more = tmp_path / mode, {"replacement_mode": mode, "placement": "all", "samples": 1}
        monkeypatch.setattr(Distill, "step", dies)
        with pytest.raises(KeyError):
            workspace.adapt(out, sae=None, transcoders=sets, checkpoint_seconds=0, **more)
        monkeypatch.setattr(Distill, "step", step)
        assert list((out / "checkpoints").iterdir())
        assert workspace.adapt(out, "--resume", sae=None, transcoders=sets, **more) == 0
        ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, run))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert results_of(out / "results.json")["ci95"] == results_of(run / "results.json")["ci95"]


def test_a_sweep_over_modes_ends_each_point_as_its_own_run(
    workspace: ws.Workspace, sets: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    base = {key: value for key, value in ws.ADAPT.items() if value is not None}
    base |= {"model": str(workspace.model), "data": str(workspace.data), "transcoders": [str(sets)], "sae": []}
    recipe = {"title": "modes", "base": {**base, "placement": "all"}}
    recipe |= {"grid": {"replacement_mode": ["cascading", "parallel"]}}
    (tmp_path / "modes.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["sweep", str(tmp_path / "modes.yaml"), "--out", str(tmp_path / "sweep"), "--quiet"]) == 0
    points = [results_of(path) for path in sorted((tmp_path / "sweep" / "points").glob("*.json"))]
    assert len(points) == 2
    for point in points:
        alone = results_of(runs[point["config"]["replacement_mode"]] / "results.json")
        for key in ("ce_sae", "ce_adapted", "kl_adapted"):
            assert point[key] == pytest.approx(alone[key], abs=1e-6)


def test_a_comparison_goes_round_a_transcoder(workspace: ws.Workspace, sets: Path, tmp_path: Path) -> None:
    recipe = ws.recipe_of(workspace)
    one = str(sets / "layers.1.mlp")
    lora = {"from": one, "rank": 4, "placement": "all", "tokens": 12 * ws.CONTEXT}
    recipe |= {"saes": {}, "methods": {"lora": lora, "parallel": {**lora, "replacement_mode": "parallel"}}}
    recipe.pop("tune")
    (tmp_path / "race.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(tmp_path / "race.yaml"), "--out", str(tmp_path / "race"), "--quiet"]) == 0
    found = {}
    for path in (tmp_path / "race" / "runs").glob("*.json"):
        run = results_of(path)
        found[run["config"]["replacement_mode"]] = run["final"]
    assert set(found) == {"cascading", "parallel"}
    assert found["cascading"]["ce_sae"] == pytest.approx(found["parallel"]["ce_sae"], abs=1e-6)  # one alone: the same
    assert found["cascading"]["gap_closed"] > 0
    assert found["cascading"]["ce"] != found["parallel"]["ce"]  # what it reads, the adapter has changed
