"""Commands on transcoders: adapt, evaluate in every part that can, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.transcoder import SkipTranscoder
from safetensors import safe_open
from safetensors.torch import load_file

import saelora
import workspace as ws
from saelora.cli import main

PARTS = ["loss", "tokens", "drift", "faithfulness", "steering"]
FEW = {"steering_n": 2, "steering_tokens": 60 * ws.CONTEXT, "steering_window": 8, "ablation_draws": 1}
FEW |= {"steering_tuning_texts": 2, "steering_test_texts": 2, "ablation_tokens": 4 * ws.CONTEXT}


@pytest.fixture(scope="module")
def transcoder(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ws.write_transcoder(tmp_path_factory.mktemp("transcoder"), layer=1, reads="ln2.hook_normalized")


@pytest.fixture(scope="module")
def run(workspace: ws.Workspace, transcoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert workspace.adapt(out, sae=transcoder, placement="all") == 0
    return out


def test_adapt_closes_some_of_a_transcoders_gap_and_leaves_the_replaced_mlp_alone(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["ce_sae"] > results["ce_base"] + 0.01
    assert results["gap_closed"] > 0.1
    assert list(results["saes"]) == ["layers.1.mlp_out"]
    assert results["about"]["saes"][0]["settings"]["reads"] == "mlp_normalized"
    with safe_open(run / "adapter_model.safetensors", "pt") as file:
        adapted = {key.split(".layers.")[1].rsplit(".lora_", 1)[0] for key in file.keys()}  # noqa: SIM118
    assert {name for name in adapted if name.startswith("1.")} == {f"1.self_attn.{p}_proj" for p in "qkvo"}
    assert "0.mlp.up_proj" in adapted


def test_a_transcoder_that_predicts_nothing_is_doubted_by_what_it_reads(
    workspace: ws.Workspace, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--adapter", str(run), "--device", "cpu", "--out", str(tmp_path / "again.json")]) == 0
    printed = capsys.readouterr()
    said = " ".join((printed.out + printed.err).split())
    fvu = json.loads((run / "results.json").read_text())["saes"]["layers.1.mlp_out"]["fvu"]
    assert fvu > 1
    assert f"the transcoder at layers.1.mlp_out has FVU {fvu:.2f}" in said
    assert "trained to read mlp_normalized there?" in said


def test_every_part_but_saebench_measures_a_transcoder(workspace: ws.Workspace, run: Path, tmp_path: Path) -> None:
    given = {"adapter": run, "out": tmp_path / "evals", "device": "cpu", **FEW}
    assert main(["evaluate", *ws.as_flags(given), "--parts", *PARTS]) == 0
    found = {part: json.loads((tmp_path / "evals" / f"{part}.json").read_text())["result"] for part in PARTS}
    results = json.loads((run / "results.json").read_text())
    assert found["loss"]["ce_adapted"] == pytest.approx(results["ce_adapted"], abs=1e-6)
    assert found["faithfulness"]["ce"]["sae"]["value"] == pytest.approx(results["ce_sae"], abs=1e-5)
    assert torch.isfinite(torch.tensor(found["drift"]["layers"][1]["l2"]["sae"]["value"]))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for layer in range(ws.N_LAYERS):
        ws.write_transcoder(root / f"layers.{layer}.mlp", layer=layer)
    return root


def test_every_mlp_is_replaced_adapted_round_and_measured_again(
    workspace: ws.Workspace, sets: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert workspace.adapt(out, sae=None, transcoders=sets, placement="all") == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results["saes"]) == [f"layers.{layer}.mlp_out" for layer in range(ws.N_LAYERS)]
    assert results["gap_closed"] > 0.1
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        assert not any("mlp" in key for key in file.keys())  # noqa: SIM118
    assert main(["evaluate", "--adapter", str(out), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["ce_adapted"] == pytest.approx(results["ce_adapted"], abs=1e-6)
    assert again["ce_sae"] == pytest.approx(results["ce_sae"], abs=1e-6)


def test_some_of_the_mlps_are_replaced(workspace: ws.Workspace, sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = {"transcoder_layers": "every:2", "sae": workspace.sae}
    assert workspace.adapt(out, transcoders=sets, **more) == 0
    found = json.loads((out / "results.json").read_text())
    assert sorted(found["saes"]) == ["layers.0.mlp_out", "layers.1.resid_post", "layers.2.mlp_out"]


def test_sets_with_layers_missing_or_too_many_are_one_line(
    workspace: ws.Workspace, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: str, where: Path = sets) -> str:
        capsys.readouterr()
        assert workspace.adapt(tmp_path / "run", *flags, sae=None, transcoders=where) == 2
        return " ".join(capsys.readouterr().err.split())

    some = tmp_path / "some"
    ws.write_transcoder(some / "layers.1.mlp", layer=1)
    assert "has no transcoder of layer 0, but of layers 1; this model has layers 0 to 3" in refused(where=some)
    ws.write_transcoder(some / "layers.7.mlp", layer=7)
    assert "has a transcoder of layer 7, this model has layers 0 to 3: is it for another model?" in refused(where=some)
    assert "transcoder_layers names layer 9" in refused("--transcoder-layers", "0,9")
    assert "expected all, every:3" in refused("--transcoder-layers", "most")
    assert "do not exist" in refused(where=tmp_path / "nowhere")
    ws.write_transcoder(some / "again" / "layers.1.mlp", layer=1)
    assert "holds no transcoders" in refused(where=workspace.data)


def test_a_linear_map_of_a_transcoder_is_refused(
    workspace: ws.Workspace, transcoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.adapt(tmp_path / "run", sae=transcoder, method="linear") == 2
    assert "method linear maps what an SAE rebuilds, and this is a transcoder" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained_round(workspace: ws.Workspace, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All MLPs replaced, the adapter and what the transcoders write trained."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    more = {"method": "lora+sae", "sae_lr": 1e-3, "placement": "all"}
    assert workspace.adapt(out, sae=None, transcoders=sets, **more) == 0
    return out


def test_transcoders_train_with_the_adapter_and_keep_their_latents(
    workspace: ws.Workspace, sets: Path, trained_round: Path, tmp_path: Path
) -> None:
    out = trained_round
    results = json.loads((out / "results.json").read_text())
    assert workspace.adapt(tmp_path / "lora", sae=None, transcoders=sets, placement="all") == 0
    alone = json.loads((tmp_path / "lora" / "results.json").read_text())
    assert results["kl_sae"] == pytest.approx(alone["kl_sae"], abs=1e-6)
    assert results["kl_adapted"] < alone["kl_adapted"]
    card = (out / "README.md").read_text()
    assert "adapted around its transcoders" in card
    assert "It belongs to transcoders that were trained with it and lie here too." in card
    assert "| adapted, transcoders trained |" in card
    manifest = json.loads((out / "saelora.json").read_text())
    assert [each["hookpoint"] for each in manifest["tuned_saes"]] == [
        f"layers.{layer}.mlp_out" for layer in range(ws.N_LAYERS)
    ]
    for layer, each in enumerate(manifest["tuned_saes"]):
        ours = load_file(out / each["folder"] / "sae_weights.safetensors")
        came = load_file(sets / f"layers.{layer}.mlp" / "sae_weights.safetensors")
        same = {name for name, tensor in ours.items() if torch.equal(tensor, came[name])}
        assert same == {"W_enc", "b_enc"}
        theirs = SAE.load_from_disk(str(out / each["folder"]))
        assert isinstance(theirs, SkipTranscoder)


def test_a_run_that_trained_its_transcoders_is_measured_and_loaded_again(
    trained_round: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((trained_round / "results.json").read_text())
    given = {"adapter": trained_round, "out": tmp_path / "evals", "device": "cpu"}
    assert main(["evaluate", *ws.as_flags(given), "--parts", "loss", "tokens", "drift", "replacement"]) == 0
    assert main(["evaluate", "--adapter", str(trained_round), "--parts", "steering"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "trained its transcoder (method lora+sae): expected --parts loss tokens drift replacement capabilities" in said
    )
    found = {
        part: json.loads((tmp_path / "evals" / f"{part}.json").read_text())["result"]
        for part in ("loss", "replacement")
    }
    for key in ("ce_sae", "ce_adapted", "kl_adapted"):
        assert found["loss"][key] == pytest.approx(results[key], abs=1e-6)
    last = found["replacement"]["curves"]["cascading"][-1]
    assert last["n_replaced"] == ws.N_LAYERS
    for figure in ("ce", "kl"):
        for variant, key in (("sae", f"{figure}_sae"), ("adapted", f"{figure}_adapted")):
            assert last[figure][variant]["value"] == pytest.approx(found["loss"][key], abs=1e-6)
    run = saelora.load(trained_round)
    ids = torch.arange(3, 3 + ws.CONTEXT)[None]
    logits = run.logits(ids)
    with run.spliced():
        frozen = run.logits(ids)
    assert (logits - frozen).abs().max() > 1e-3
    generated = run.model.generate(ids[:, :6], max_new_tokens=4, do_sample=False, use_cache=True)
    plain = run.model.generate(ids[:, :6], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(generated, plain)


def test_the_frozen_transcoders_beside_trained_ones_are_put_in_by_the_same_mode(
    trained_round: Path, tmp_path: Path
) -> None:
    def evaluated(*flags: str) -> Any:
        out = tmp_path / f"loss{len(flags)}.json"
        assert main(["evaluate", "--adapter", str(trained_round), "--device", "cpu", "--out", str(out), *flags]) == 0
        return json.loads(out.read_text())

    plain = evaluated()
    added = evaluated("--add-error")
    assert added["ce_sae"] == added["ce_base"]
    parallel = evaluated("--replacement-mode", "parallel")
    assert parallel["ce_sae"] != pytest.approx(plain["ce_sae"], abs=1e-4)
    given = {"adapter": trained_round, "out": tmp_path / "evals", "device": "cpu"}
    assert main(["evaluate", *ws.as_flags(given), "--parts", "replacement"]) == 0
    curves = json.loads((tmp_path / "evals" / "replacement.json").read_text())["result"]["curves"]
    assert parallel["ce_sae"] == pytest.approx(curves["parallel"][-1]["ce"]["sae"]["value"], abs=1e-6)
    assert parallel["ce_adapted"] == pytest.approx(curves["parallel"][-1]["ce"]["adapted"]["value"], abs=1e-6)


def test_a_merged_model_names_the_transcoders_that_it_belongs_to(trained_round: Path, tmp_path: Path) -> None:
    words = ["export", str(trained_round), "--to", "merged", "--quiet", "--out", str(tmp_path / "merged")]
    assert main(words) == 0
    told = " ".join((tmp_path / "merged" / "README.md").read_text().split())
    assert "what the run trained from the transcoders named above, not to these" in told
    assert "run through these transcoders:" in told
    assert "cross entropy through the transcoders " in told
    assert "run it through its transcoders with saelora" in told
    assert (
        f"sae/layers.0.mlp_out, sae/layers.1.mlp_out, sae/layers.2.mlp_out, sae/layers.3.mlp_out of {trained_round}"
        in told
    )


def test_transcoders_are_finetuned_alone(
    workspace: ws.Workspace, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def flags(out: Path) -> list[str]:
        given = {**ws.ADAPT, "data": workspace.data, "transcoders": sets, "out": out}
        given = {key: value for key, value in given.items() if key not in ("rank", "lr")}
        return ["finetune-sae", str(workspace.model), *ws.as_flags(given)]

    assert main(flags(tmp_path / "whole")) == 0
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["kl_adapted"] < results["kl_sae"]
    capsys.readouterr()
    assert main(["export", str(tmp_path / "whole"), "--to", "peft", "--out", str(tmp_path / "out")]) == 2
    assert "the transcoders that it trained are in its folder" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_transcoder_of_another_model_and_two_writers_are_one_line_each(
    workspace: ws.Workspace, transcoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_transcoder(tmp_path / "other", layer=1, d_in=24)
    assert workspace.adapt(tmp_path / "run", sae=other) == 2
    assert "reads d_in 24, this model has d_model 32: is it for another model?" in capsys.readouterr().err
    twice = ws.write_transcoder(tmp_path / "twice", layer=1)
    assert workspace.adapt(tmp_path / "run", sae=[transcoder, twice]) == 2
    assert "two SAEs at layers.1.mlp_out" in capsys.readouterr().err
