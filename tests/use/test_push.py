"""A run pushed by the real hub client to a hub on loopback, and taken back from it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

import saelora
import workspace as ws
from hub_server import Hub, reach, running
from saelora.cli import main
from saelora.errors import InputError
from saelora.use.push import push
from tiny_clt import clt_weights, write_clt

PROMPT = "bada lume"
REPO = "me/run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that knows this process as one that may write; its cache is empty."""
    with running() as server:
        reach(server, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield server


@pytest.fixture
def own_run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, with what is no result beside it."""
    folder = tmp_path / "my-run"
    shutil.copytree(run_folder, folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"state")
    (folder / "notes.txt").write_text("not for others")
    return folder


def refused(**options: object) -> str:
    with pytest.raises(InputError) as caught:
        push(quiet=True, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pushed_run_is_loaded_by_name_and_gives_the_same_bits(hub: Hub, own_run: Path, workspace) -> None:
    here = saelora.load(own_run)
    done = push(ref=str(own_run), repo=REPO, quiet=True)
    assert done["private"]
    assert [*hub.commits(REPO)[0]] == []
    assert sorted(hub.commits(REPO)[-1]) == sorted(done["files"])
    there = saelora.load(REPO, model=str(workspace.model))  # the SAE comes from the repository
    for name in here.variants:
        with here.as_variant(name), there.as_variant(name):
            assert torch.equal(here.logits(PROMPT), there.logits(PROMPT))
    assert there.about.adapter == here.about.adapter
    assert there.report().read_bytes()


def test_only_results_go_and_none_of_them_names_a_place_on_this_machine(hub: Hub, own_run: Path, workspace) -> None:
    done = push(ref=str(own_run), repo=REPO, quiet=True)
    assert set(done["left"]) == {"checkpoints/last.pt", "notes.txt"}
    held = hub.commits(REPO)[-1]
    assert {"saelora.json", "results.json", "README.md", "adapter_model.safetensors"} <= held.keys()
    assert {f"saes/{ws.HOOKPOINT}/cfg.json", f"saes/{ws.HOOKPOINT}/sae_weights.safetensors"} <= held.keys()
    for path, content in held.items():
        for place in (workspace.root, own_run.parent, Path.home() / "x"):
            assert str(place).removesuffix("x").encode() not in content, path
    manifest = json.loads(held["saelora.json"])
    assert (manifest["model"]["ref"], manifest["config"]["sae"]) == ("./model", [f"./saes/{ws.HOOKPOINT}"])
    before = json.loads((own_run / "saelora.json").read_text())
    assert manifest["metrics"] == before["metrics"]
    assert json.loads((own_run / "saelora.json").read_text())["model"]["ref"] == str(workspace.model)  # left as it was
    named = push(ref=str(own_run), repo=REPO, quiet=True, model="owner/base")
    assert json.loads(hub.commits(REPO)[-1]["saelora.json"])["config"]["model"] == "owner/base"
    assert "lies on this machine: say --model" in done["notes"][0]
    assert not any("--model" in note for note in named["notes"])


def test_card_has_what_the_hub_reads_and_code_that_names_the_repository(hub: Hub, own_run: Path) -> None:
    push(ref=str(own_run), repo=REPO, quiet=True, license="mit", model="owner/base")
    text = hub.commits(REPO)[-1]["README.md"].decode()
    card = ModelCard(text)
    results = json.loads((own_run / "results.json").read_text())
    found = {each.metric_type: each for each in card.data.eval_results}
    for name in ("ce_sae", "kl_adapted", "top1_adapted", "gap_closed"):
        assert found[name].metric_value == results[name]
        assert [found[name].metric_args["ci95_low"], found[name].metric_args["ci95_high"]] == results["ci95"][name]
    assert (card.data.license, card.data.base_model) == ("mit", "owner/base")
    assert "Positions left alone: token ids" in text
    assert "arXiv:2501.19406" in text
    assert f"saelora.load('{REPO}')" in text
    assert "BASE MODEL" not in text
    assert "THIS FOLDER" not in text


def test_second_push_sends_only_what_has_changed_and_an_equal_one_makes_no_commit(hub: Hub, own_run: Path) -> None:
    first = push(ref=str(own_run), repo=REPO, quiet=True)
    assert sorted(first["changed"]) == sorted(first["files"])
    n, sent = len(hub.commits(REPO)), len(hub.sent("PUT /objects"))
    assert sent > 0
    again = push(ref=str(own_run), repo=REPO, quiet=True)
    assert (again["changed"], again["commit"], len(hub.commits(REPO))) == ([], first["commit"], n)
    (own_run / "evals").mkdir(exist_ok=True)
    (own_run / "evals" / "drift.json").write_text("{}")
    more = push(ref=str(own_run), repo=REPO, quiet=True)
    assert (more["changed"], len(hub.commits(REPO))) == (["evals/drift.json"], n + 1)
    assert len(hub.sent("PUT /objects")) == sent
    (own_run / "evals" / "drift.json").unlink()
    less = push(ref=str(own_run), repo=REPO, quiet=True)
    assert less["removed"] == ["evals/drift.json"]
    assert hub.commits(REPO)[-1] == hub.commits(REPO)[n - 1]


def test_interrupted_push_leaves_the_repository_as_it_was_and_the_next_sends_the_rest(hub: Hub, own_run: Path) -> None:
    hub.failing["PUT /objects"] = (200, 1)  # the first is lost on its way
    hub.failing["POST .*/commit/"] = (403, 1)
    assert "not yours to write to" in refused(ref=str(own_run), repo=REPO)
    assert hub.commits(REPO) == [{}]
    held = set(hub.objects)
    n = len(hub.sent("PUT /objects"))
    done = push(ref=str(own_run), repo=REPO, quiet=True)
    assert len(hub.sent("PUT /objects")) == n + 1  # the lost one alone
    assert set(hub.objects) > held
    assert sorted(hub.commits(REPO)[-1]) == sorted(done["files"])
    assert len(hub.commits(REPO)) == 2


def test_killed_while_it_sends_leaves_the_repository_as_it_was(hub: Hub, own_run: Path, tmp_path: Path) -> None:
    code = f"""
import os, threading
from saelora.use.sharing import upload
import huggingface_hub._commit_api as api
kept, one = api.lfs_upload, threading.Lock()
def last(**given):
    with one:  # files go up side by side: none is to be on its way still when the next push is counted
        kept(**given)
        os._exit(9)
api.lfs_upload = last
from saelora.cli import main
main(["push", {str(own_run)!r}, {REPO!r}, "--quiet"])
"""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env={**env, "HF_HUB_OFFLINE": "0"}, capture_output=True)
    assert done.returncode == 9, done.stderr
    assert hub.commits(REPO) == [{}]
    assert hub.objects
    sent = len(hub.objects)
    n = len(hub.sent("PUT /objects"))
    push(ref=str(own_run), repo=REPO, quiet=True)
    assert len(hub.sent("PUT /objects")) - n == len(hub.objects) - sent
    assert len(hub.commits(REPO)) == 2


def test_dry_run_shows_files_sizes_and_card_and_asks_the_hub_for_nothing(
    hub: Hub, own_run: Path, monkeypatch, capsys
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(own_run), REPO, "--dry-run", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"kB  adapter_model\.safetensors", said)
    assert "stays here: checkpoints/last.pt" in said
    assert "model-index:" in said
    assert "Nothing was sent" in said
    assert hub.asked == []


def test_a_branch_is_made_pushed_to_and_loaded_from(hub: Hub, own_run: Path, workspace) -> None:
    done = push(ref=str(own_run), repo=REPO, quiet=True, revision="try/2")
    assert hub.commits(REPO) == [{}]
    assert sorted(hub.commits(REPO, "try/2")[-1]) == sorted(done["files"])
    loaded = saelora.load(f"{REPO}@try%2F2", model=str(workspace.model))
    assert torch.equal(loaded.logits(PROMPT), saelora.load(own_run).logits(PROMPT))
    with pytest.raises(InputError, match="has no revision nowhere"):
        saelora.load(f"{REPO}@nowhere")


def test_what_was_fetched_is_loaded_again_without_the_hub(hub: Hub, own_run: Path, workspace, monkeypatch) -> None:
    push(ref=str(own_run), repo=REPO, quiet=True)
    expected = saelora.load(REPO, model=str(workspace.model)).logits(PROMPT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(saelora.load(REPO, model=str(workspace.model)).logits(PROMPT), expected)


def test_a_public_repository_takes_nothing_that_is_to_be_private(hub: Hub, own_run: Path) -> None:
    assert push(ref=str(own_run), repo=REPO, quiet=True, public=True)["private"] is False
    n = len(hub.commits(REPO))
    assert "me/run is public: say --public" in refused(ref=str(own_run), repo=REPO)
    assert len(hub.commits(REPO)) == n
    push(ref=str(own_run), repo="me/other", quiet=True)
    kept = push(ref=str(own_run), repo="me/other", quiet=True, public=True)
    assert kept["private"]
    assert "was private before and stays so" in kept["notes"][-1]


def test_bad_cases_are_one_line_each(hub: Hub, own_run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    ref = str(own_run)
    for repo in ("run", "a/b/c", "me/", "/me", "me/ru n"):
        assert "is no name of a repository: expected owner/name" in refused(ref=ref, repo=repo)
    assert "does not exist" in refused(ref=str(own_run / "nowhere"), repo=REPO)
    assert "not yours to write to" in refused(ref=ref, repo="you/run")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "not yours to write to" in refused(ref=ref, repo=REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "the hub does not know you" in refused(ref=ref, repo=REPO)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(own_run / "no-token"))
    assert "you are not logged in to the hub: log in with `hf auth login`" in refused(ref=ref, repo=REPO)
    assert hub.repos == {}
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert main(["push", ref, "run", "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_is_not_finished_or_has_changed_is_refused(hub: Hub, own_run: Path) -> None:
    results = own_run / "results.json"
    results.rename(own_run / "away.json")
    assert "is not finished: it has no results.json" in refused(ref=str(own_run), repo=REPO)
    (own_run / "away.json").rename(results)
    weights = own_run / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "has changed since its run ended" in refused(ref=str(own_run), repo=REPO)
    for name in ("saelora.json", "results.json"):
        (own_run / name).unlink()
    assert "is not finished: go on with --resume" in refused(ref=str(own_run), repo=REPO)
    assert hub.repos == {}


def test_no_network_is_one_line(own_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused(ref=str(own_run), repo=REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_generate_and_adapt_take_runs_and_trained_saes_from_the_hub(
    hub: Hub, own_run: Path, workspace, tmp_path: Path, capsys
) -> None:
    push(ref=str(own_run), repo=REPO, quiet=True)
    asked = ["--max-new-tokens", "4", "--quiet"]
    assert main(["generate", REPO, PROMPT, "--model", str(workspace.model), *asked]) == 0
    said = capsys.readouterr().out
    assert main(["generate", str(own_run), PROMPT, *asked]) == 0
    assert capsys.readouterr().out == said
    assert workspace.train_sae(tmp_path / "trained", "--quiet") == 0
    push(ref=str(tmp_path / "trained"), repo="me/sae", quiet=True)
    held = hub.commits("me/sae")[-1]
    assert not any(str(workspace.root).encode() in content for content in held.values())
    assert ModelCard(held["README.md"].decode()).data.library_name == "saelens"
    assert workspace.adapt(tmp_path / "on-it", "--quiet", sae="me/sae", tokens=4 * ws.CONTEXT) == 0
    made = json.loads((tmp_path / "on-it" / "saelora.json").read_text())
    assert made["saes"][0]["ref"] == "me/sae"
    assert (
        made["saes"][0]["revision"]
        == json.loads(json.dumps(push(ref=str(tmp_path / "trained"), repo="me/sae")))["commit"]
    )
    there = saelora.load("me/sae", model=str(workspace.model))
    assert torch.equal(there.logits(PROMPT), saelora.load(tmp_path / "trained").logits(PROMPT))


@pytest.mark.parametrize("method", ["lora+sae", "linear", "sae"])
def test_a_run_that_trained_its_sae_goes_with_it(hub: Hub, workspace, tmp_path: Path, method: str) -> None:
    out = tmp_path / "both"
    small = {"tokens": 8 * ws.CONTEXT}
    if method == "sae":
        given = {"sae": workspace.sae, "data": workspace.data, "out": out, **ws.COMMON, **small, "lr": 1e-3}
        assert main(["finetune-sae", str(workspace.model), *ws.as_flags(given), "--quiet"]) == 0
    else:
        assert workspace.adapt(out, "--quiet", "--method", method, **small) == 0
    done = push(ref=str(out), repo="me/both", quiet=True)
    own = "sae_weights.safetensors" if method == "sae" else "sae/sae_weights.safetensors"
    assert own in done["files"]
    assert ("adapter_model.safetensors" in done["files"]) == (method == "lora+sae")
    here, there = saelora.load(out), saelora.load("me/both", model=str(workspace.model))
    for name in here.variants:
        with here.as_variant(name), there.as_variant(name):
            assert torch.equal(here.logits(PROMPT), there.logits(PROMPT))
    ref = f"me/both/{own}"
    assert saelora.load_sae(ref).fingerprint == saelora.load_sae(str(out / own)).fingerprint


def test_names_that_are_folders_here_are_no_names_of_the_hub(hub: Hub, own_run: Path, monkeypatch) -> None:
    """data/text would be taken for a data set of someone called data."""
    (own_run.parent / "data" / "text").mkdir(parents=True)
    monkeypatch.chdir(own_run.parent)
    manifest = json.loads((own_run / "saelora.json").read_text())
    manifest["config"]["data"] = "data/text"
    (own_run / "saelora.json").write_text(json.dumps(manifest))
    card = push(ref=str(own_run), repo=REPO, quiet=True, dry_run=True)["card"]
    assert "datasets" not in ModelCard(card).data.to_dict()
    manifest["model"]["ref"] = manifest["config"]["model"] = "owner/base"
    (own_run / "saelora.json").write_text(json.dumps(manifest))
    assert "leave out --model owner/other" in refused(ref=str(own_run), repo=REPO, model="owner/other")


def test_an_sae_that_lies_here_and_has_changed_is_refused(hub: Hub, own_run: Path, tmp_path: Path) -> None:
    manifest = json.loads((own_run / "saelora.json").read_text())
    other = ws.write_sae(tmp_path / "other-sae", layer=1, seed=5)
    manifest["config"]["sae"] = [str(other)]
    manifest["saes"][0]["ref"] = str(other)
    (own_run / "saelora.json").write_text(json.dumps(manifest))
    assert "has changed since the run was made with it" in refused(ref=str(own_run), repo=REPO)


def test_a_repository_that_holds_something_else_is_left_alone(hub: Hub, own_run: Path) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo(REPO, private=True)
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPO)
    held = hub.commits(REPO)
    assert "me/run holds something else (config.json, ...)" in refused(ref=str(own_run), repo=REPO)
    assert hub.commits(REPO) == held


def test_a_pushed_run_is_evaluated_reported_and_drawn_by_name(
    hub: Hub, own_run: Path, workspace, tmp_path: Path, monkeypatch, capsys
) -> None:
    push(ref=str(own_run), repo=REPO, quiet=True, revision="v1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked = {"model": str(workspace.model), "data": str(workspace.data), "quiet": True}
    here = saelora.evaluate(adapter=str(own_run), parts=("loss", "drift"), out=str(tmp_path / "own"), **asked)
    there = saelora.evaluate(adapter=f"{REPO}@v1", parts=("loss", "drift"), **asked)
    for name in ("ce_base", "ce_sae", "ce_adapted", "kl_adapted", "drift"):
        assert there[name] == here[name]
    assert there["about"]["adapter"] == here["about"]["adapter"]
    file = json.loads(Path("run-evals/drift.json").read_text())
    assert file["options"]["adapter"] == f"{REPO}@v1"
    assert main(["report", f"{REPO}@v1", "--quiet"]) == 0
    assert main(["figure", f"{REPO}@v1", str(own_run), "--kind", "losses", "--format", "svg", "--quiet"]) == 0
    assert main(["figure", f"{REPO}@v1", "--kind", "losses", "--format", "svg", "--quiet"]) == 0
    made = {
        "run-report.html",
        "saelora-losses.svg",
        "saelora-losses.csv",
        "run-losses.svg",
        "run-losses.csv",
        "run-evals",
    }
    assert {path.name for path in Path().iterdir()} == made
    assert f"{REPO}@v1" in Path("saelora-losses.csv").read_text()
    capsys.readouterr()
    assert main(["evaluate", "--adapter", "me/none"]) == 2
    assert "me/none is not on the hub, or it is private" in capsys.readouterr().err


def _of_circuit_tracer(root: Path, workspace: ws.Workspace) -> Path:
    more = {"architecture": "skip-transcoder", "hookpoint": None, "transcoder_layers": "all", "circuit_tracer": root}
    assert workspace.train_sae(root.parent / "trained", "--quiet", **more) == 0
    return root


def _crossing(root: Path, workspace) -> Path:
    return write_clt(root, clt_weights(ws.N_LAYERS, ws.D_MODEL, size=0.1))


def _of_saelens(root: Path, workspace: ws.Workspace) -> Path:
    for layer in range(ws.N_LAYERS):
        ws.write_transcoder(root / f"layers.{layer}.mlp" / "width_1", layer=layer)
    (root / "layers.0.mlp" / "notes.txt").write_text("not for others")
    return root


@pytest.mark.parametrize(
    ("write", "pattern", "layers", "files"),
    [
        (_of_saelens, "/layers.*.mlp/width_1", "all", 2 * ws.N_LAYERS),
        (_of_saelens, "", "every:2", 4),
        (_of_circuit_tracer, "", "all", ws.N_LAYERS + 1),
        (_crossing, "", "all", 2 * ws.N_LAYERS + 1),
    ],
    ids=["saelens", "some", "circuit-tracer", "cross-layer"],
)
def test_transcoders_of_a_local_folder_travel_with_the_run(
    hub: Hub, workspace, tmp_path: Path, write, pattern: str, layers: str, files: int, capsys
) -> None:
    sets = write(tmp_path / "private" / "my-set", workspace)
    out = tmp_path / "replaced"
    more = {"sae": None, "transcoders": f"{sets}{pattern}", "transcoder_layers": layers, "placement": "all"}
    assert workspace.adapt(out, "--quiet", tokens=4 * ws.CONTEXT, **more) == 0
    here = saelora.load(out)
    expected = {}
    for name in here.variants:
        with here.as_variant(name):
            expected[name] = here.logits(PROMPT)
    assert main(["push", str(out), REPO, "--dry-run", "--quiet"]) == 0
    assert re.search(r"transcoders of .* so that their files go too \([0-9.]+ MB, in saes/", capsys.readouterr().out)
    push(ref=str(out), repo=REPO, quiet=True)
    held = hub.commits(REPO)[-1]
    assert len([path for path in held if path.startswith("saes/transcoders/my-set/")]) == files
    assert not any(str(tmp_path).encode() in content for content in held.values())
    sets.rename(tmp_path / "moved")
    there = saelora.load(REPO, model=str(workspace.model))
    for name, logits in expected.items():
        with there.as_variant(name):
            assert torch.equal(there.logits(PROMPT), logits)
    again = saelora.evaluate(adapter=REPO, model=str(workspace.model), data=str(workspace.data), quiet=True)
    results = json.loads((out / "results.json").read_text())
    assert again["ce_adapted"] == pytest.approx(results["ce_adapted"], abs=1e-6)


def test_transcoders_can_stay_where_they_are(hub: Hub, workspace, tmp_path: Path) -> None:
    sets = _of_saelens(tmp_path / "my-set", workspace)
    out = tmp_path / "replaced"
    more = {"sae": None, "transcoders": sets, "placement": "all", "tokens": 4 * ws.CONTEXT}
    assert workspace.adapt(out, "--quiet", **more) == 0
    done = push(ref=str(out), repo=REPO, quiet=True, saes=False)
    assert not any(path.startswith("saes/") for path in done["files"])
    assert f"Transcoders {sets} lie on this machine and do not go" in " ".join(done["notes"])
    given = {"model": str(workspace.model), "transcoders": [str(sets)]}
    assert torch.equal(saelora.load(REPO, **given).logits(PROMPT), saelora.load(out).logits(PROMPT))
    with pytest.raises(InputError, match=r"transcoders .* do not exist"):
        saelora.load(REPO, model=str(workspace.model))
