"""saelora train-sae, from flags to SAEs that SAELens and adapt load."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import workspace as ws
from saelora.saes.loading import load_sae
from saelora.train.tracking import Metrics


@pytest.fixture(scope="module")
def trained(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "sae"
    assert workspace.train_sae(out, "--quiet") == 0
    return out


def test_trained_sae_loads_in_saelens_and_in_saelora(trained: Path) -> None:
    from sae_lens import SAE

    x = torch.randn(5, ws.D_MODEL, generator=torch.Generator().manual_seed(0))
    theirs, ours = SAE.load_from_disk(str(trained), device="cpu"), load_sae(str(trained))
    assert (theirs.cfg.d_in, theirs.cfg.d_sae) == (ws.D_MODEL, ws.D_SAE)
    assert str(ours.hookpoint) == "layers.1.resid_post"
    torch.testing.assert_close(theirs(x), ours.sae(x))
    assert (theirs.encode(x) != 0).sum(1).max() <= ws.K


def test_results_and_card_stand_beside_the_sae_and_nothing_temporary(trained: Path) -> None:
    names = set(ws.files_in(trained))
    expected = {"cfg.json", "sae_weights.safetensors", "results.json", "README.md", "metrics.jsonl", "config.yaml"}
    assert names == expected | {"training.json"}
    results = json.loads((trained / "results.json").read_text())
    assert results["fvu"] < 1
    assert 0 < results["l0"] <= ws.K
    assert {"dead_frac", "ce_base", "ce_sae", "loss_recovered_sae", "n_tokens_trained"} <= results.keys()
    assert ws.CONTEXT * 110 < results["n_tokens_trained"] <= ws.CONTEXT * 120


def test_resume_of_a_finished_training_says_so(
    workspace: ws.Workspace, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ws.files_in(trained)
    assert workspace.train_sae(trained, "--resume", "--json") == 0
    printed = capsys.readouterr()
    assert "finished already" in printed.err
    results = json.loads(printed.out)
    assert results["layers.1.resid_post"] == json.loads((trained / "results.json").read_text())
    assert ws.files_in(trained) == before


def test_same_seed_gives_the_same_sae(workspace: ws.Workspace, trained: Path, tmp_path: Path) -> None:
    assert workspace.train_sae(tmp_path / "again", "--quiet") == 0
    first, second = (load_file(folder / "sae_weights.safetensors") for folder in (trained, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_several_hookpoints_are_saved_apart(workspace: ws.Workspace, trained: Path, tmp_path: Path) -> None:
    hookpoints = ["layers.1.resid_post", "layers.2.mlp_out"]
    assert workspace.train_sae(tmp_path / "saes", "--quiet", hookpoint=hookpoints) == 0
    for hookpoint in hookpoints:
        assert str(load_sae(str(tmp_path / "saes" / hookpoint)).hookpoint) == hookpoint
    alone, beside = (load_file(f / "sae_weights.safetensors") for f in (trained, tmp_path / "saes" / hookpoints[0]))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


VARIANTS = ["k=4", "architecture=batchtopk, passes=1", "d_sae=40"]


@pytest.fixture(scope="module")
def varied(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("varied") / "saes"
    assert workspace.train_sae(out, "--quiet", variant=VARIANTS) == 0
    return out


def test_each_variant_has_its_folder_results_and_card(
    workspace: ws.Workspace, varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: varied / "layers.1.resid_post" / name for name in (v.replace(" ", "") for v in VARIANTS)}
    assert set(folders) == {path.name for path in (varied / "layers.1.resid_post").iterdir()}
    for folder in folders.values():
        assert set(ws.files_in(folder)) == {"cfg.json", "sae_weights.safetensors", "results.json", "README.md"}
        assert str(load_sae(str(folder)).hookpoint) == "layers.1.resid_post"
    assert {path.name for path in varied.iterdir() if path.is_file()} == {
        "metrics.jsonl",
        "config.yaml",
        "training.json",
    }
    cards = {name: (folder / "README.md").read_text() for name, folder in folders.items()}
    assert "`topk`, k 4," in cards["k=4"]
    assert "variant k=4" in cards["k=4"]
    assert "A batchtopk sparse" in cards["architecture=batchtopk,passes=1"]
    assert f"`batchtopk`, k {ws.K}," in cards["architecture=batchtopk,passes=1"]
    assert "passes 1," in cards["architecture=batchtopk,passes=1"]
    assert "d_sae 40," in cards["d_sae=40"]

    assert workspace.train_sae(varied, "--resume", "--json", variant=VARIANTS) == 0
    results = json.loads(capsys.readouterr().out)
    expected = {f"layers.1.resid_post/{n}": json.loads((f / "results.json").read_text()) for n, f in folders.items()}
    assert results == expected


def test_a_variant_has_the_weights_and_figures_of_a_run_of_its_own(
    workspace: ws.Workspace, varied: Path, tmp_path: Path
) -> None:
    beside = varied / "layers.1.resid_post" / "architecture=batchtopk,passes=1"
    assert workspace.train_sae(tmp_path / "alone", "--quiet", architecture="batchtopk", passes=1) == 0
    ours, theirs = (load_file(folder / "sae_weights.safetensors") for folder in (beside, tmp_path / "alone"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    figures = [json.loads((folder / "results.json").read_text()) for folder in (beside, tmp_path / "alone")]
    assert len({json.dumps({**found, "seconds_training": 0}) for found in figures}) == 1


def test_interrupted_run_of_variants_ends_as_if_uninterrupted(
    workspace: ws.Workspace, varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Metrics.write

    def stop_after_step_20(self: Metrics, row: dict[str, float]) -> None:
        write(self, row)
        if row["step"] == 20:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "saes"
    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "write", stop_after_step_20)
        assert workspace.train_sae(out, "--quiet", variant=VARIANTS) == 143
    assert not list(out.rglob("sae_weights.safetensors"))
    assert workspace.train_sae(out, "--quiet", "--resume", variant=VARIANTS[:2]) == 2
    assert workspace.train_sae(out, "--quiet", "--resume", variant=VARIANTS) == 0
    ours, theirs = ({k: v for k, v in ws.files_in(f).items() if k.endswith(".safetensors")} for f in (out, varied))
    assert len(ours) == len(VARIANTS)
    assert ours == theirs


def test_several_hookpoints_and_variants_make_a_folder_each(workspace: ws.Workspace, tmp_path: Path) -> None:
    hookpoints = ["layers.1.resid_post", "layers.2.mlp_out"]
    options = {"hookpoint": hookpoints, "variant": ["k=4", "k=6"], "tokens": 12 * ws.CONTEXT}
    assert workspace.train_sae(tmp_path / "saes", "--quiet", **options) == 0
    found = {str(path.parent.relative_to(tmp_path / "saes")) for path in (tmp_path / "saes").rglob("cfg.json")}
    assert found == {f"{hookpoint}/{variant}" for hookpoint in hookpoints for variant in options["variant"]}


def test_progress_of_several_saes_shows_their_mean_fvu(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelora.console.PLAIN_SECONDS", 0.0)
    assert workspace.train_sae(tmp_path / "saes", variant=["k=4", "k=6"], tokens=12 * ws.CONTEXT) == 0
    last = json.loads((tmp_path / "saes" / "metrics.jsonl").read_text().splitlines()[-1])
    told = "  ".join(f"{name} {last[name]:.4g}" for name in ("fvu", "relative_error", "top_variance"))
    assert f"{told} (mean of 2 SAEs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        (["kk=4"], "did you mean 'k'"),
        (["tokens=4"], "unknown key 'tokens'"),
        (["k=4", "k=4"], "same SAE"),
        (["architecture=relu"], "architecture: got 'relu'"),
        (["k=999"], "layers.1.resid_post/k=999"),
    ],
)
def test_bad_variant_is_refused_before_anything_is_written(
    workspace: ws.Workspace, tmp_path: Path, variants: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.train_sae(tmp_path / "run", "--quiet", variant=variants) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_adapt_runs_on_a_trained_sae(workspace: ws.Workspace, trained: Path, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", sae=trained, tokens=8 * ws.CONTEXT) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["kl_adapted"] < results["kl_sae"]


def test_an_existing_out_is_refused_and_left_as_it_is(
    workspace: ws.Workspace, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ws.files_in(trained)
    assert workspace.train_sae(trained, "--quiet") == 2
    assert "exists" in capsys.readouterr().err
    assert ws.files_in(trained) == before


@pytest.fixture(scope="module")
def end_to_end(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("e2e") / "sae"
    assert workspace.train_sae(out, "--quiet", objective="e2e+downstream", downstream=0.5) == 0
    return out


def _results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())


def test_end_to_end_training_lowers_what_the_splice_costs(
    workspace: ws.Workspace, end_to_end: Path, tmp_path: Path
) -> None:
    assert workspace.train_sae(tmp_path / "kl", "--quiet", objective="e2e") == 0
    assert workspace.train_sae(tmp_path / "untrained", "--quiet", objective="e2e", lr=1e-9) == 0
    untrained = _results(tmp_path / "untrained")
    for folder in (tmp_path / "kl", end_to_end):
        found = _results(folder)
        assert found["ce_sae"] - found["ce_base"] < 0.8 * (untrained["ce_sae"] - untrained["ce_base"])
        assert found["kl_sae"] < 0.8 * untrained["kl_sae"]


def test_end_to_end_run_says_so_in_card_configuration_and_metrics(end_to_end: Path) -> None:
    card = (end_to_end / "README.md").read_text()
    assert "Trained end to end: " in card
    assert "later layers' outputs (weight 0.5)" in card
    assert "passes 1," in card
    metadata = json.loads((end_to_end / "cfg.json").read_text())["metadata"]
    assert metadata["training_objective"] == "e2e+downstream"
    rows = [json.loads(line) for line in (end_to_end / "metrics.jsonl").read_text().splitlines()]
    assert all({"loss", "kl", "mse", "fvu", "l0", "dead_frac"} <= row.keys() for row in rows)
    assert rows[-1]["kl"] < rows[0]["kl"]


def test_progress_shows_the_objective_and_its_kl(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saelora.console.PLAIN_SECONDS", 0.0)
    assert workspace.train_sae(tmp_path / "sae", objective="e2e", tokens=8 * ws.CONTEXT) == 0
    said = capsys.readouterr().err
    assert "training SAE end to end" in said
    assert "kl " in said


def test_interrupted_end_to_end_run_ends_as_if_uninterrupted(
    workspace: ws.Workspace, end_to_end: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, options = Metrics.write, {"objective": "e2e+downstream", "downstream": 0.5}

    def stop_after_step_20(self: Metrics, row: dict[str, float]) -> None:
        write(self, row)
        if row["step"] == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "write", stop_after_step_20)
        assert workspace.train_sae(tmp_path / "sae", "--quiet", **options) == 143
    assert workspace.train_sae(tmp_path / "sae", "--quiet", "--resume", objective="e2e") == 2
    assert workspace.train_sae(tmp_path / "sae", "--quiet", "--resume", **options) == 0
    ours, theirs = (load_file(folder / "sae_weights.safetensors") for folder in (tmp_path / "sae", end_to_end))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("objective", ["local", "e2e"])
def test_training_goes_on_from_a_finished_sae_of_its_shape(
    workspace: ws.Workspace, trained: Path, tmp_path: Path, objective: str
) -> None:
    options = {"start": trained, "d_sae": None, "k": None, "objective": objective, "lr": 1e-9, "exempt": "bos"}
    assert workspace.train_sae(tmp_path / "sae", "--quiet", **options) == 0
    before, after = load_sae(str(trained)), load_sae(str(tmp_path / "sae"))
    for name, weight in before.sae.state_dict().items():
        torch.testing.assert_close(after.sae.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert f"It went on from {trained}." in (tmp_path / "sae" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"start": "no-such-sae", "d_sae": None}, "SAE 'no-such-sae' is no existing path"),
        ({"start": "TRAINED", "k": 4}, "k is 4, but the start"),
        ({"start": "TRAINED", "d_sae": None, "expansion": 8}, "d_sae is 256, but the start"),
        ({"start": "TRAINED", "architecture": "jumprelu", "k": None}, "architecture is jumprelu, but the start"),
        ({"start": "TRAINED", "hookpoint": ["layers.1.resid_post", "layers.2.mlp_out"]}, "got 2 hookpoints: give one"),
        ({"objective": "kl"}, "objective"),
        (
            {"objective": "e2e", "downstream": 2.0},
            "--downstream does nothing with --objective e2e: leave it out, or take --objective e2e+downstream",
        ),
        ({"objective": "e2e+downstream", "downstream": 0.0}, "downstream is 0.0, expected a number above 0"),
        ({"objective": "e2e+downstream", "hookpoint": "layers.3.resid_post"}, "no layer above layers.3.resid_post"),
        ({"objective": "e2e", "architecture": "matryoshka"}, "use batchtopk"),
    ],
)
def test_bad_objective_or_start_is_refused_before_anything_is_written(
    workspace: ws.Workspace,
    trained: Path,
    tmp_path: Path,
    changed: dict[str, object],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {key: trained if value == "TRAINED" else value for key, value in changed.items()}
    assert workspace.train_sae(tmp_path / "run", "--quiet", **given) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_start_of_another_width_is_refused(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_sae(tmp_path / "other", layer=1, d_in=16)
    assert workspace.train_sae(tmp_path / "run", "--quiet", start=other) == 2
    assert "d_in is 32, but the start" in capsys.readouterr().err
