"""adapt --method and finetune-sae, from flags to the SAEs that SAELens loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import saelora
import workspace as ws
from saelora.cli import main

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
BESIDE = {"saelora.json", "results.json", "metrics.jsonl", "README.md", "learning_curve.png", "config.yaml"}
SAE_FILES = {"cfg.json", "sae_weights.safetensors"}
SMALL = {**ws.ADAPT, "tokens": 40 * ws.CONTEXT}
# method -> the options of its command; a finetuned SAE wants a lower lr than an adapter
RUNS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "lora+sae": {"method": "lora+sae", "sae_lr": 1e-3, "objective": "kl+mse"},
    "finetune-sae": {"lr": 1e-3},
}


def run(workspace: ws.Workspace, out: Path | str, name: str, *flags: str, **options: Any) -> int:
    given = {"sae": workspace.sae, "data": workspace.data, "out": out, **SMALL, **RUNS[name], **options}
    if name == "finetune-sae":
        given.pop("rank")
    command = "finetune-sae" if name == "finetune-sae" else "adapt"
    return main([command, str(workspace.model), *ws.as_flags(given), "--quiet", *flags])


@pytest.fixture(scope="module")
def finished(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of finished runs by method. Leave them as they are."""
    root = tmp_path_factory.mktemp("methods")
    for name in RUNS:
        assert run(workspace, root / name, name) == 0
    return {name: root / name for name in RUNS}


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def sae_folder(out: Path, name: str) -> Path:
    return out if name == "finetune-sae" else out / "sae"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_what_it_trained_and_nothing_temporary(finished: dict[str, Path], name: str) -> None:
    below = "" if name == "finetune-sae" else "sae/"
    expected = BESIDE | {below + file for file in SAE_FILES} | (ADAPTER if name == "lora+sae" else set())
    assert set(ws.files_in(finished[name])) == expected


@pytest.mark.parametrize("name", RUNS)
def test_training_wins_cross_entropy_back_and_the_results_say_how(finished: dict[str, Path], name: str) -> None:
    results, manifest = results_of(finished[name]), json.loads((finished[name] / "saelora.json").read_text())
    assert results["method"] == manifest["method"] == RUNS[name].get("method", "sae")
    assert results["ce_adapted"] < results["ce_sae"] - 0.05
    assert results["history"][0]["gap_closed"] == pytest.approx(0, abs=1e-4) or name == "lora+sae"
    assert ("ce_adapted_clean" in results) == (name == "lora+sae")
    here = "layers.1.resid_post"
    assert results["saes_adapted"][here]["fvu"] != results["saes"][here]["fvu"]
    rows = [json.loads(line) for line in (finished[name] / "metrics.jsonl").read_text().splitlines()]
    assert any("fvu" in row for row in rows) == (name != "linear")
    card = (finished[name] / "README.md").read_text()
    assert ('saelora.load(".")' in card) == (name == "lora+sae")
    assert f'SAE.load_from_disk(".{"" if name == "finetune-sae" else "/sae"}")' in card


@pytest.mark.parametrize("name", ["linear", "finetune-sae"])
def test_saelens_alone_runs_the_sae_to_the_recorded_loss(
    workspace: ws.Workspace, finished: dict[str, Path], name: str
) -> None:
    from sae_lens import SAE

    sae: Any = SAE.load_from_disk(sae_folder(finished[name], name), device="cpu")
    loaded = saelora.load_model(str(workspace.model), device="cpu")
    rows = held_out(workspace, loaded)
    keep = rows > 2
    handle = loaded.model.model.layers[1].register_forward_hook(
        lambda module, args, out: torch.where(keep[..., None], sae.decode(sae.encode(out)), out)
    )
    with torch.no_grad():
        logits = loaded.model(input_ids=rows).logits
    handle.remove()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    counted = keep[:, :-1].flatten()
    assert float(losses[counted].mean()) == pytest.approx(results_of(finished[name])["ce_adapted"], rel=1e-4)
    about = sae.cfg.metadata.saelora_tuned
    assert about["method"] == RUNS[name].get("method", "sae")
    assert about["from"]["ref"] == str(workspace.sae)
    assert about["n_tokens"] == SMALL["tokens"]


def held_out(workspace: ws.Workspace, loaded: Any) -> torch.Tensor:
    from saelora.assemble import validation_rows
    from saelora.config import build
    from saelora.jobs import adapt

    return validation_rows(build(adapt.Config, {"data": str(workspace.data), **SMALL}), loaded)


@pytest.mark.parametrize("name", RUNS)
def test_evaluate_gives_the_figures_that_the_run_gave(
    finished: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--adapter", str(finished[name]), "--json", "--quiet"]) == 0
    measured, recorded = json.loads(capsys.readouterr().out), results_of(finished[name])
    shared = set(measured) & set(recorded)
    assert {"method", "ce_sae", "ce_adapted", "gap_closed", "saes", "saes_adapted", "ci95"} <= shared
    assert {key: measured[key] for key in shared} == {key: recorded[key] for key in shared}


@pytest.mark.parametrize("name", RUNS)
def test_a_trained_sae_is_read_by_its_folder_and_measures_the_same(
    workspace: ws.Workspace, finished: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"sae": sae_folder(finished[name], name), "data": workspace.data, **ws.COMMON}
    assert main(["evaluate", str(workspace.model), *ws.as_flags(given), "--json", "--quiet"]) == 0
    measured, recorded = json.loads(capsys.readouterr().out), results_of(finished[name])
    assert (measured["ce_sae"] == pytest.approx(recorded["ce_adapted"], rel=1e-6)) == (name != "lora+sae")


def test_two_saes_leave_a_folder_each(workspace: ws.Workspace, tmp_path: Path) -> None:
    second = ws.write_sae(tmp_path / "second", layer=2, seed=1)
    for name, below in (("linear", "sae"), ("finetune-sae", ".")):
        out = tmp_path / name
        assert run(workspace, out, name, sae=[workspace.sae, second], tokens=8 * ws.CONTEXT) == 0
        for layer in (1, 2):
            assert set(ws.files_in(out / below / f"layers.{layer}.resid_post")) >= SAE_FILES
        assert set(results_of(out)["saes_adapted"]) == {"layers.1.resid_post", "layers.2.resid_post"}
        assert main(["evaluate", "--adapter", str(out), "--quiet"]) == 0


@pytest.mark.parametrize("name", RUNS)
def test_report_shows_the_losses_of_any_method_and_how_to_go_on(
    finished: dict[str, Path], name: str, tmp_path: Path
) -> None:
    assert main(["report", str(finished[name]), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"{results_of(finished[name])['ce_adapted']:.3f}" in page
    assert f"saelora {'finetune-sae' if name == 'finetune-sae' else 'adapt'} --config" in page
    assert "--parts drift" in page
    assert "--parts faithfulness" not in page  # which would refuse


@pytest.mark.parametrize("name", RUNS)
def test_tokens_and_drift_set_the_trained_sae_against_the_frozen_one(
    finished: dict[str, Path], name: str, tmp_path: Path
) -> None:
    told = main(
        ["evaluate", "--adapter", str(finished[name]), "--parts", "tokens", "drift", "--out", str(tmp_path), "--quiet"]
    )
    assert told == 0
    tokens, drift = (json.loads((tmp_path / f"{part}.json").read_text())["result"] for part in ("tokens", "drift"))
    recorded = results_of(finished[name])
    assert tokens["trained"] == ("adapter+sae" if name == "lora+sae" else "sae")
    gained = recorded["ce_adapted"] - recorded["ce_sae"]
    assert tokens["change"]["mean"]["value"] == pytest.approx(gained, rel=1e-4)
    assert tokens["cost"]["mean"]["value"] == pytest.approx(recorded["ce_sae"] - recorded["ce_base"], rel=1e-4)
    latents = drift["latents"]["layers.1.resid_post"]
    # only finetuning moves the encoder (the others refold its bias); lora+sae's adapter lies above the SAE
    assert (latents["jaccard"]["value"] == 1.0) == (name != "finetune-sae")
    for arm, key in (("base", "saes"), ("adapted", "saes_adapted")):
        assert latents["fvu"][arm]["value"] == pytest.approx(recorded[key]["layers.1.resid_post"]["fvu"], rel=1e-4)
    last = drift["layers"][-1]["l2"]
    assert (last["adapted_clean"]["value"] == 0) == (name != "lora+sae")
    assert last["adapted"]["value"] != last["sae"]["value"]


@pytest.mark.parametrize("name", RUNS)
def test_parts_that_need_one_frozen_sae_are_refused(
    finished: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--adapter", str(finished[name]), "--parts", "faithfulness", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "trained its SAE" in said
    assert "expected --parts loss tokens drift capabilities" in said
    assert not (finished[name] / "evals").exists()


def test_all_parts_of_a_run_that_trained_its_sae_are_those_that_say_something_of_it(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    given = ["evaluate", "--adapter", str(finished["linear"]), "--parts", "all", "--out", str(tmp_path / "evals")]
    assert main([*given, "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "evals").iterdir()} == {"loss.json", "tokens.json", "drift.json"}


def test_a_changed_sae_is_not_taken_for_the_runs_own(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(workspace, out, "linear", tokens=4 * ws.CONTEXT) == 0
    ws.write_sae(out / "sae", layer=1, seed=3)
    assert main(["evaluate", "--adapter", str(out), "--quiet"]) == 2
    assert "has changed since its run ended" in capsys.readouterr().err


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an error that lora cannot lower": ("linear", {"method": "lora", "objective": "kl+mse"}, "method lora leaves"),
    "method unknown": ("linear", {"method": "bias"}, "expected one of lora, linear, lora+sae"),
    "rank 0": ("linear", {"rank": 0}, "rank is 0, expected a number from 1"),
    "SAE lr negative": ("lora+sae", {"sae_lr": -1}, "sae_lr"),
    "an adapter's option": ("finetune-sae", {"dropout": 0.1}, "--dropout"),
    "part unknown": ("finetune-sae", {"part": "encoder"}, "expected one of sae, decoder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    workspace: ws.Workspace, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, options, expected = REFUSED[case]
    assert run(workspace, tmp_path / "run", name, **options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert expected in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["lora+sae", "finetune-sae"])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(
    workspace: ws.Workspace, finished: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saelora.objectives.distill import Distill
    from saelora.train.interrupt import Interrupted

    out, step, taken = tmp_path / "run", Distill.step, []

    def stops(self: Distill, rows: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        if len(taken) == 7:
            raise Interrupted(15, 7)
        taken.append(progress)
        return step(self, rows, progress)

    monkeypatch.setattr(Distill, "step", stops)
    assert run(workspace, out, name, checkpoint_seconds=0) == 143
    monkeypatch.undo()
    assert run(workspace, out, name, "--resume", checkpoint_seconds=0) == 0
    ends = [load_file(sae_folder(folder, name) / "sae_weights.safetensors") for folder in (out, finished[name])]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])
    assert results_of(out)["ci95"] == results_of(finished[name])["ci95"]


def test_beside_an_adapter_an_sae_trains_at_a_tenth_of_its_rate_where_nobody_says_another() -> None:
    from saelora.jobs import adapt, finetune_sae
    from saelora.jobs.training_options import recipe_of

    both = {"method": "lora+sae", "lr": 2e-3}
    assert recipe_of(adapt.Config(**both)).sae_lr == pytest.approx(2e-4)
    assert recipe_of(adapt.Config(**both, sae_lr=5e-4)).sae_lr == 5e-4
    assert recipe_of(adapt.Config(method="linear")).sae_lr is None  # the map's own rate is --lr
    assert recipe_of(adapt.Config()).sae_lr is None
    assert recipe_of(finetune_sae.Config()).sae_lr is None


def test_a_recorded_run_from_before_methods_can_be_gone_on_with(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path
) -> None:
    import yaml

    from saelora.config import build
    from saelora.jobs import adapt
    from saelora.jobs.run import check_out

    old = yaml.safe_load((adapted / "config.yaml").read_text())
    for key in ("method", "sae_lr", "objective"):
        del old[key]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(old))
    check_out(build(adapt.Config, {**old, "out": str(tmp_path / "run"), "resume": True}))
