"""saelora train-sae for transcoders, from flags to sets that SAELens, circuit-tracer's reader and adapt load."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import workspace as ws
from saelora.cli import main
from saelora.saes.loading import load_sae
from saelora.train.tracking import Metrics

NAMES = [f"layers.{layer}.mlp_out" for layer in range(ws.N_LAYERS)]
ALL = {"hookpoint": None, "architecture": "skip-transcoder", "transcoder_layers": "all"}


@pytest.fixture(scope="module")
def trained(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    more = {"circuit_tracer": root / "circuit-tracer", "save_dtype": "bfloat16"}
    assert workspace.train_sae(root / "set", "--quiet", **ALL, **more) == 0
    return root / "set"


def evaluated(workspace: ws.Workspace, transcoders: Path, out: Path) -> dict:
    given = {"data": workspace.data, "transcoders": transcoders, "out": out, **ws.COMMON}
    assert main(["evaluate", str(workspace.model), *ws.as_flags(given), "--quiet"]) == 0
    return json.loads(out.read_text())


def test_each_layer_has_a_folder_that_saelens_and_saelora_load(trained: Path) -> None:
    from sae_lens import SAE
    from sae_lens.saes.transcoder import SkipTranscoder, Transcoder

    assert [path.name for path in sorted(trained.iterdir()) if path.is_dir()] == NAMES
    x = torch.randn(5, ws.D_MODEL, generator=torch.Generator().manual_seed(0))
    for name in NAMES:
        theirs, ours = SAE.load_from_disk(str(trained / name), device="cpu"), load_sae(str(trained / name))
        assert isinstance(theirs, Transcoder)
        assert isinstance(theirs, SkipTranscoder)
        assert (str(ours.hookpoint), ours.sae.reads, theirs.dtype) == (name, "mlp_in", torch.bfloat16)
        wide = theirs.to(torch.float64)
        torch.testing.assert_close(wide(x.double()), ours.sae.double()(x.double()), rtol=1e-12, atol=1e-12)


def test_results_are_of_the_clean_stream_and_losses_of_all_at_once(
    workspace: ws.Workspace, trained: Path, tmp_path: Path
) -> None:
    together = json.loads((trained / "training.json").read_text())["together"][""]
    again = evaluated(workspace, trained, tmp_path / "again.json")
    assert again["ce_sae"] == pytest.approx(together["ce_sae"], abs=1e-6)
    assert again["kl_sae"] == pytest.approx(together["kl_sae"], abs=1e-6)
    assert list(again["saes"]) == NAMES
    for name in NAMES:
        found = json.loads((trained / name / "results.json").read_text())
        assert 0 < found["fvu"] < 0.5
        assert found["l0"] == pytest.approx(ws.K, rel=0.25)
        assert found["ce_base"] == together["ce_base"]
        assert "ce_sae" not in found
        fingerprints = [sae["fingerprint"] for sae in found["about"]["saes"]]
        assert fingerprints == [load_sae(str(trained / name)).fingerprint]
    # the lowest reads what it reads in the clean model, the others what those below have made of it
    fvu = {name: json.loads((trained / name / "results.json").read_text())["fvu"] for name in NAMES}
    assert again["saes"][NAMES[0]]["fvu"] == pytest.approx(fvu[NAMES[0]], rel=1e-5)
    assert all(again["saes"][name]["fvu"] > fvu[name] for name in NAMES[1:])


def test_the_set_for_circuit_tracer_is_the_same_transcoders(
    workspace: ws.Workspace, trained: Path, tmp_path: Path
) -> None:
    folder = trained.parent / "circuit-tracer"
    x = torch.randn(5, ws.D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer, name in enumerate(NAMES):
        one, other = load_sae(str(trained / name)), load_sae(str(folder / f"layer_{layer}.safetensors"))
        assert (one.hookpoint, one.sae.reads) == (other.hookpoint, other.sae.reads)
        assert torch.equal(one.sae.double()(x), other.sae.double()(x))
    both = [evaluated(workspace, where, tmp_path / f"{where.name}.json") for where in (trained, folder)]
    assert both[0]["ce_sae"] == both[1]["ce_sae"]


def test_adapt_takes_the_folder_as_it_is(workspace: ws.Workspace, trained: Path, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", sae=None, transcoders=trained, placement="all") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["saes"]) == NAMES
    assert results["kl_adapted"] < results["kl_sae"]


def test_cards_say_what_a_transcoder_is(trained: Path) -> None:
    card = (trained / NAMES[1] / "README.md").read_text()
    assert "# Transcoder of " in card
    assert "for layers.1.mlp_out" in card
    assert "with a skip connection" in card
    assert "the MLP's inputs (mlp_in) and outputs" in card
    assert "those above a threshold are (JumpReLU)" in card
    assert "SAE spliced in" not in card


def test_one_layer_has_its_own_losses_and_the_weights_it_has_among_others(
    workspace: ws.Workspace, trained: Path, tmp_path: Path
) -> None:
    more = {"architecture": "skip-transcoder", "hookpoint": NAMES[1], "save_dtype": "bfloat16"}
    assert workspace.train_sae(tmp_path / "one", "--quiet", **more) == 0
    assert (
        ws.files_in(tmp_path / "one")["sae_weights.safetensors"]
        == (ws.files_in(trained)[f"{NAMES[1]}/sae_weights.safetensors"])
    )
    found = json.loads((tmp_path / "one" / "results.json").read_text())
    assert found["ce_base"] < found["ce_sae"] < found["ce_zero"]
    assert f"transcoder spliced in | {found['ce_sae']:.4f}" in (tmp_path / "one" / "README.md").read_text()
    assert "together" not in json.loads((tmp_path / "one" / "training.json").read_text())


def test_variants_of_some_layers_are_sets_of_their_own(workspace: ws.Workspace, tmp_path: Path) -> None:
    more = {**ALL, "transcoder_layers": "0,2", "variant": ["k=4", "architecture=transcoder"], "tokens": 20 * ws.CONTEXT}
    assert workspace.train_sae(tmp_path / "set", "--quiet", **more) == 0
    together = json.loads((tmp_path / "set" / "training.json").read_text())["together"]
    assert list(together) == ["k=4", "architecture=transcoder"]
    folders = {str(path.parent.relative_to(tmp_path / "set")) for path in tmp_path.rglob("cfg.json")}
    assert folders == {f"layers.{layer}.mlp_out/{variant}" for layer in (0, 2) for variant in together}
    kinds = {v: load_sae(str(tmp_path / "set" / "layers.0.mlp_out" / v)).sae.cfg.skip for v in together}
    assert kinds == {"k=4": True, "architecture=transcoder": False}


def test_interrupted_run_ends_as_if_uninterrupted(
    workspace: ws.Workspace, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Metrics.write
    options = {**ALL, "circuit_tracer": tmp_path / "ct", "save_dtype": "bfloat16"}

    def stop_after_step_20(self: Metrics, row: dict[str, float]) -> None:
        write(self, row)
        if row["step"] == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "write", stop_after_step_20)
        assert workspace.train_sae(tmp_path / "set", "--quiet", **options) == 143
    assert not list(tmp_path.rglob("*.safetensors"))
    assert workspace.train_sae(tmp_path / "set", "--quiet", "--resume", **{**options, "transcoder_layers": "0"}) == 2
    assert workspace.train_sae(tmp_path / "set", "--quiet", "--resume", **options) == 0
    for name in NAMES:
        ours, theirs = (load_file(folder / name / "sae_weights.safetensors") for folder in (tmp_path / "set", trained))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert len(list((tmp_path / "ct").glob("layer_*.safetensors"))) == ws.N_LAYERS


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"transcoder_layers": "0,9"}, "transcoder_layers names layer 9: this model has layers 0 to 3"),
        ({"transcoder_layers": "most"}, "expected all, every:3"),
        ({"transcoder_layers": None}, "no hookpoint given"),
        ({"hookpoint": NAMES[0]}, "--hookpoint and --transcoder-layers both say where to train"),
        ({"transcoder_layers": None, "hookpoint": "layers.9.mlp_out"}, "layers 0 to 3"),
        ({"transcoder_layers": None, "hookpoint": "layers.1.resid_post"}, "a transcoder cannot write at"),
        ({"transcoder_layers": None, "hookpoint": [NAMES[1], "layers.1.mlp"]}, "no two alike"),
        ({"architecture": "topk"}, "--transcoder-layers does nothing with --architecture topk"),
        ({"variant": ["k=4", "architecture=topk"]}, "SAEs and transcoders cannot be trained in one run"),
        ({"objective": "e2e"}, "train transcoders with --objective local"),
        ({"start": "SAE"}, "--start goes on from an SAE"),
        ({"k": 999}, "k is 999 but d_sae is 64"),
        ({"l1_coefficient": 2.0}, "--l1-coefficient does nothing with --architecture skip-transcoder"),
        ({"circuit_tracer": "ct", "transcoder_layers": "every:2"}, "circuit-tracer reads no other"),
        ({"circuit_tracer": "ct", "variant": ["k=4", "k=6"]}, "--variant makes several"),
        ({"circuit_tracer": "OUT"}, "lies in --out, where --transcoders would find each layer twice"),
        ({"circuit_tracer": "SAE"}, "exists: choose another"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    workspace: ws.Workspace,
    tmp_path: Path,
    changed: dict[str, object],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"SAE": workspace.sae, "OUT": tmp_path / "run" / "ct"}
    given = {**ALL, **{key: places.get(str(value), value) for key, value in changed.items()}}
    assert workspace.train_sae(tmp_path / "run", "--quiet", **given) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
