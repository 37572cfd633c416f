"""saelora evaluate, with and without an adapter."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import saelora
import workspace as ws
from saelora.cli import main
from saelora.identity import ModelId
from saelora.jobs.evaluate import Config
from saelora.jobs.recorded import with_recorded
from saelora.manifest import Manifest


def evaluate(*words: str, **options: Any) -> int:
    return main(["evaluate", *words, *ws.as_flags(options), "--quiet"])


def own_flags(workspace: ws.Workspace) -> dict[str, Any]:
    return {"sae": workspace.sae, "data": workspace.data, **ws.COMMON}


def test_without_an_adapter_the_splice_alone_is_measured(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    assert evaluate(str(workspace.model), "--json", out=out, **own_flags(workspace)) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads(out.read_text())
    assert not any("adapted" in name for name in results)
    assert results["ce_sae"] == json.loads((adapted / "results.json").read_text())["ce_sae"]
    assert {"fvu", "l0", "dead_frac"} <= results["saes"]["layers.1.resid_post"].keys()
    assert results["about"]["saes"][0]["hookpoint"] == "layers.1.resid_post"
    assert results["about"]["token_policy"]["exempt_ids"] == [0, 1, 2]


def test_the_table_is_printed_without_json(
    workspace: ws.Workspace, adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--adapter", str(adapted)) == 0
    assert "spliced + adapted" in capsys.readouterr().out


def test_options_given_override_those_recorded(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--adapter", str(adapted), "--json", eval_tokens=3 * ws.CONTEXT) == 0
    assert json.loads(capsys.readouterr().out)["n_tokens_evaluated"] < 3 * ws.CONTEXT


def test_an_option_given_as_its_default_overrides_what_was_recorded(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default = Config().eval_tokens
    assert default > ws.COMMON["eval_tokens"]
    assert evaluate("--adapter", str(adapted), "--json", eval_tokens=default) == 0
    asked = json.loads(capsys.readouterr().out)["n_tokens_evaluated"]
    assert asked > ws.COMMON["eval_tokens"]  # all the held-out text there is
    (tmp_path / "given.yaml").write_text(f"eval-tokens: {default}\n")
    assert evaluate("--adapter", str(adapted), "--json", config=tmp_path / "given.yaml") == 0
    assert json.loads(capsys.readouterr().out)["n_tokens_evaluated"] == asked
    assert saelora.evaluate(adapter=str(adapted), eval_tokens=default, quiet=True)["n_tokens_evaluated"] == asked
    made = Config(adapter=str(adapted), eval_tokens=default, quiet=True)
    assert saelora.evaluate(made)["n_tokens_evaluated"] == asked


RECORDED = Manifest(
    config={
        **{"model": "m", "revision": "main", "sae": ["s"], "hookpoint": ["layers.3.resid_post"], "data": "d"},
        **{"subset": "en", "split": "test", "text_column": "body", "context": 32, "rank": 4},
    },
    model=ModelId(ref="m", revision="c0ffee"),
    saes=[],
)


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({}, ()),
        ({"context": 256}, ("context",)),
        ({"revision": "v2"}, ("revision",)),
        ({"model": "other"}, ("model", "revision")),
        ({"sae": ["other"]}, ("sae", "hookpoint")),
        ({"data": "other"}, ("data", "subset", "split", "text_column")),
        ({"data": "other", "split": "dev"}, ("data", "subset", "split", "text_column")),
    ],
)
def test_what_a_run_recorded_stands_in_for_what_is_not_given_and_goes_with_it(
    given: dict[str, Any], own: tuple[str, ...]
) -> None:
    config = Config(**given)
    merged = with_recorded(config, RECORDED, own=("adapter",))
    then = {**RECORDED.config, "revision": "c0ffee"}
    for name in ("model", "revision", "sae", "hookpoint", "data", "subset", "split", "text_column", "context"):
        assert getattr(merged, name) == (getattr(config, name) if name in own else then[name]), name
    assert merged.given == set(given)


def test_an_existing_out_is_refused_and_kept(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("mine")
    assert evaluate(str(workspace.model), out=tmp_path / "results.json", **own_flags(workspace)) == 2
    assert "results.json exists" in ws.one_line(capsys)
    assert (tmp_path / "results.json").read_text() == "mine"


def test_out_in_a_folder_that_is_not_there_is_refused(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(str(workspace.model), out=tmp_path / "no" / "results.json", **own_flags(workspace)) == 2
    assert "results.json" in ws.one_line(capsys)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"config": {}}'])
def test_a_folder_that_is_no_finished_run_is_refused(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "saelora.json").write_text(content)
    assert evaluate("--adapter", str(tmp_path)) == 2
    assert str(tmp_path) in ws.one_line(capsys)


def test_truncated_adapter_is_refused(adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy"))
    whole = (copy / "adapter_model.safetensors").read_bytes()
    (copy / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert evaluate("--adapter", str(copy)) == 2
    assert str(copy) in ws.one_line(capsys)


def recorded_elsewhere(adapted: Path, copy: Path, **changed: Any) -> Path:
    """The run with other paths in its manifest."""
    shutil.copytree(adapted, copy)
    manifest = json.loads((copy / "saelora.json").read_text())
    manifest["config"] |= changed
    (copy / "saelora.json").write_text(json.dumps(manifest))
    return copy


def test_sae_that_has_changed_since_is_refused(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=1, seed=5)
    copy = recorded_elsewhere(adapted, tmp_path / "copy", sae=[str(other)])
    assert evaluate("--adapter", str(copy)) == 2
    assert "has changed since the adapter was made" in ws.one_line(capsys)
    assert evaluate("--adapter", str(copy), "--other-weights") == 0


def test_model_that_has_changed_since_is_refused(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(workspace.model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = 2 * weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    copy = recorded_elsewhere(adapted, tmp_path / "copy", model=str(model))
    assert evaluate("--adapter", str(copy)) == 2
    assert "has changed since the adapter was made" in ws.one_line(capsys)
    assert evaluate(str(model), "--adapter", str(copy), "--other-weights") == 0


def test_a_model_of_another_shape_is_refused(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(workspace.model)
    config.intermediate_size = 40
    torch.manual_seed(0)
    model = Path(shutil.copytree(workspace.model, tmp_path / "model"))
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    capsys.readouterr()
    assert evaluate(str(model), "--adapter", str(adapted), "--other-weights") == 2
    assert "does not load on this model" in ws.one_line(capsys)
