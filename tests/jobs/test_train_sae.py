"""saelora train-sae, from flags to SAEs that SAELens and adapt load."""

import json
from pathlib import Path

import pytest
import torch
import workspace as ws
from safetensors.torch import load_file

from saelora.saes.loading import load_sae


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
