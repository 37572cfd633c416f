"""Whatever is wrong with the input ends in exit code 2, one line that says what to do, and nothing written."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import workspace as ws
from saelora.cli import main
from saelora.train.tracking import TRACKERS


def refused(code: int, capsys: pytest.CaptureFixture[str], *expected: str) -> None:
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    assert printed.err.startswith("saelora: ")
    assert printed.err.count("\n") == 1, printed.err
    for words in expected:
        assert words in printed.err


def nothing_written(out: Path) -> bool:
    return not out.exists() or not any(out.iterdir())


VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no such model path": ({"model": "./no/such/model"}, "./no/such/model does not exist"),
    "hub model, no network": ({"model": "someone/some-model"}, "someone/some-model"),
    "hub SAE, no network": ({"sae": "someone/some-sae"}, "someone/some-sae"),
    "no such data path": ({"data": "./no/such/data.txt"}, "./no/such/data.txt does not exist"),
    "hub data, no network": ({"data": "someone/some-data"}, "someone/some-data"),
    "no SAE": ({"sae": None}, "--sae"),
    "no data": ({"data": None}, "--data"),
    "no out": ({"out": None}, "--out"),
    "hookpoint out of range": ({"hookpoint": "layers.9.resid_post"}, "layer"),
    "hookpoint that is none": ({"hookpoint": "layers.1.nose"}, "'layers.1.nose'"),
    "more hookpoints than SAEs": ({"hookpoint": ["layers.1.resid_post", "layers.2.resid_post"]}, "2 --hookpoint"),
    "rank 0": ({"rank": 0}, "rank is 0"),
    "rank in words": ({"rank": "many"}, "rank: got 'many', expected a whole number"),
    "rank infinite": ({"rank": "inf"}, "rank: got 'inf'"),
    "alpha in words": ({"alpha": "high"}, "alpha: got 'high', expected a number"),
    "placement unknown": ({"placement": "middle"}, "placement is 'middle'"),
    "placement out of range": ({"placement": "layers:2-7"}, "layers 0 to 3"),
    "token policy unknown": ({"exempt": "bso"}, "'bso'"),
    "context longer than the model": ({"context": 65}, "64 positions"),
    "context too short": ({"context": 1}, "context is 1"),
    "tokens in words": ({"tokens": "many"}, "tokens: got 'many', expected a count such as 25000, 25k or 15M"),
    "tokens negative": ({"tokens": -3}, "tokens: got '-3'"),
    "no tokens": ({"tokens": 0}, "tokens is 0"),
    "no rows a step": ({"batch_rows": 0}, "batch_rows"),
    "held-out share": ({"validation_fraction": 1.5}, "validation_fraction is 1.5"),
    "nothing held out": ({"validation_fraction": 0}, "validation_fraction is 0"),
    "loss unknown": ({"loss": "mse"}, "loss: got 'mse', expected one of token_mean, sequence_sum"),
    "initialisation unsafe": ({"init": "pissa"}, "'pissa'"),
    "device unknown": ({"device": "abacus"}, "'abacus'"),
    "dtype unknown": ({"dtype": "int8"}, "dtype: got 'int8'"),
    "lr negative": ({"lr": -1e-3}, "lr"),
    "lr not a number": ({"lr": "nan"}, "lr"),
    "weight decay negative": ({"weight_decay": -1}, "weight_decay"),
    "clip negative": ({"clip": -1}, "clip"),
    "warmup above 1": ({"warmup": 2}, "warmup"),
    "dropout above 1": ({"dropout": 1.5}, "dropout"),
    "tracker unknown": ({"track": "abacus"}, "tensorboard"),
}


@pytest.mark.parametrize("case", VALUES)
def test_bad_value_is_refused(
    workspace: ws.Workspace, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, expected = VALUES[case]
    out = tmp_path / "run"
    given = {"sae": workspace.sae, "data": workspace.data, "out": out, **ws.ADAPT, **changed}
    model = given.pop("model", str(workspace.model))
    refused(main(["adapt", model, *ws.as_flags(given), "--quiet"]), capsys, expected)
    assert nothing_written(out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rnak", "4"], "--rnak"),
        (["--betas", "0.9"], "betas"),
        (["--betas", "0.9", "1.0"], "betas"),
        (["--config", "no-such-file.yaml"], "no-such-file.yaml"),
    ],
)
def test_bad_flag_is_refused(
    workspace: ws.Workspace, tmp_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(workspace.adapt(tmp_path / "run", "--quiet", *words), capsys, expected)
    assert nothing_written(tmp_path / "run")


def test_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(main(["adapt", "--quiet", "--out", str(tmp_path / "run"), "--data", "x", "--sae", "y"]), capsys, "no model")
    assert nothing_written(tmp_path / "run")


def test_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = [name for name in TRACKERS if find_spec(name) is None]
    if not absent:
        pytest.skip(f"all of {', '.join(TRACKERS)} are installed here")
    code = workspace.adapt(tmp_path / "run", "--quiet", track=absent[0])
    refused(code, capsys, f"pip install 'saelora[{absent[0]}]'")
    assert nothing_written(tmp_path / "run")


@pytest.mark.parametrize(("text", "expected"), [("", "holds no text"), ("a few words", "one row needs")])
def test_too_little_text_is_refused(
    workspace: ws.Workspace, tmp_path: Path, text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text(text)
    refused(workspace.adapt(tmp_path / "run", "--quiet", data=tmp_path / "short.txt"), capsys, expected)
    assert nothing_written(tmp_path / "run")


def test_out_that_is_a_file_is_refused_and_kept(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    for flags in ([], ["--overwrite"], ["--resume"]):
        refused(workspace.adapt(tmp_path / "run", "--quiet", *flags), capsys, "run")
        refused(workspace.train_sae(tmp_path / "run", "--quiet", *flags), capsys, "run")
    assert (tmp_path / "run").read_text() == "mine"


def truncated(source: Path, target: Path, name: str) -> Path:
    shutil.copytree(source, target)
    whole = (target / name).read_bytes()
    (target / name).write_bytes(whole[: len(whole) // 2])
    return target


def test_truncated_model_weights_are_refused(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = truncated(workspace.model, tmp_path / "model", "model.safetensors")
    flags = ws.as_flags({"sae": workspace.sae, "data": workspace.data, "out": tmp_path / "run", **ws.ADAPT})
    refused(main(["adapt", str(model), *flags, "--quiet"]), capsys, str(model))
    assert nothing_written(tmp_path / "run")


def test_truncated_sae_weights_are_refused(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = truncated(workspace.sae, tmp_path / "sae", "sae_weights.safetensors")
    refused(workspace.adapt(tmp_path / "run", "--quiet", sae=sae), capsys, "sae_weights.safetensors")
    assert nothing_written(tmp_path / "run")


def test_nan_in_the_sae_is_refused(workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = Path(shutil.copytree(workspace.sae, tmp_path / "sae"))
    weights = load_file(sae / "sae_weights.safetensors")
    weights["W_dec"][3, 4] = torch.nan
    save_file(weights, sae / "sae_weights.safetensors")
    refused(workspace.adapt(tmp_path / "run", "--quiet", sae=sae), capsys, "W_dec")
    assert nothing_written(tmp_path / "run")


def test_sae_of_another_width_names_both_widths(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = ws.write_sae(tmp_path / "wide", layer=1, d_in=48)
    refused(workspace.adapt(tmp_path / "run", "--quiet", sae=sae), capsys, "48", f"has {ws.D_MODEL}")
    assert nothing_written(tmp_path / "run")


# SPEC 12.2
def test_two_saes_at_one_hookpoint_are_refused(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = workspace.adapt(tmp_path / "run", "--quiet", sae=[workspace.sae, workspace.sae])
    refused(code, capsys, "two SAEs at layers.1.resid_post")


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("rnak: 4\n", "did you mean 'rank'"),
        ("- rank\n- 4\n", "expected lines of the form key: value"),
        ("rank: [", "no YAML"),
        ("rank: {a: 1}\n", "rank: got {'a': 1}"),
        ("model: [a, b]\n", "model: got ['a', 'b']"),
        ("tokens:\n", "tokens: got None"),
    ],
)
def test_bad_recipe_is_refused(
    workspace: ws.Workspace, tmp_path: Path, yaml: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml)
    words = ["--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    refused(main(["adapt", *words]), capsys, expected)
    assert nothing_written(tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"hookpoint": None}, "--hookpoint"),
        ({"hookpoint": "layers.9.resid_post"}, "layer"),
        ({"hookpoint": ["layers.1.resid_post", "blocks.1.hook_resid_post"]}, "no two alike"),
        ({"architecture": "relu"}, "architecture: got 'relu'"),
        ({"k": 999}, "k is 999"),
        ({"k": 0}, "k is 0"),
        ({"lr": -1}, "lr is -1"),
        ({"save_dtype": "int8"}, "save_dtype is 'int8'"),
        ({"data": None}, "--data"),
        ({"tokens": 0}, "tokens"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"context": 65}, "64 positions"),
        ({"track": "abacus"}, "tensorboard"),
    ],
)
def test_bad_value_for_sae_training_is_refused(
    workspace: ws.Workspace, tmp_path: Path, changed: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(workspace.train_sae(tmp_path / "run", "--quiet", **changed), capsys, expected)
    assert nothing_written(tmp_path / "run")
