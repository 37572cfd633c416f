"""saelora adapt, from flags to the files that others load."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import saelora
import workspace as ws
from saelora.cli import main
from saelora.core.splice import splice
from saelora.models.hookpoints import Hookpoint

WEIGHTS = "adapter_model.safetensors"
FIGURES = [
    "ce_base",
    "ce_sae",
    "ce_adapted",
    "ce_adapted_clean",
    "ce_gap",
    "gap_closed",
    "kl_sae",
    "kl_adapted",
    "loss_recovered_sae",
    "loss_recovered_adapted",
    "n_tokens_trained",
    "n_tokens_evaluated",
    "seconds_training",
    "tokens_per_second",
]


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def layers_adapted(out: Path) -> set[int]:
    return {int(name.split(".layers.")[1].split(".")[0]) for name in load_file(out / WEIGHTS)}


def test_every_promised_file_is_there_and_nothing_temporary(adapted: Path) -> None:
    promised = {"adapter_config.json", WEIGHTS, "saelora.json", "results.json", "metrics.jsonl", "README.md"}
    assert set(ws.files_in(adapted)) == promised | {"learning_curve.png", "config.yaml"}
    assert (adapted / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (adapted / "checkpoints").exists()


def test_results_hold_every_promised_figure(adapted: Path) -> None:
    results = results_of(adapted)
    assert all(math.isfinite(results[name]) for name in FIGURES)
    assert results["ce_gap"] == pytest.approx(results["ce_sae"] - results["ce_base"])
    assert results["gap_closed"] == pytest.approx((results["ce_sae"] - results["ce_adapted"]) / results["ce_gap"])
    assert results["n_tokens_trained"] == ws.ADAPT["tokens"]
    assert [row["n_tokens"] for row in results["history"]] == [0, ws.ADAPT["tokens"] // 2, ws.ADAPT["tokens"]]
    assert all({"seconds", "kl", "ce"} <= row.keys() for row in results["history"])


def test_adapting_lowers_the_divergence_from_the_clean_model(adapted: Path) -> None:
    results = results_of(adapted)
    assert results["ce_gap"] > 0.1  # else the workspace shows nothing
    assert results["kl_adapted"] < 0.9 * results["kl_sae"]
    assert results["history"][-1]["kl"] < results["history"][0]["kl"]
    losses = [row["loss"] for row in map(json.loads, (adapted / "metrics.jsonl").open()) if "loss" in row]
    assert len(losses) == 30
    assert sum(losses[-5:]) < sum(losses[:5])


# SPEC 11.9
def test_peft_alone_loads_the_adapter_and_gives_the_adapted_logits(workspace: ws.Workspace, adapted: Path) -> None:
    from peft import PeftModel
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[0, 40, 51, 300, 7, 88]])
    base = AutoModelForCausalLM.from_pretrained(workspace.model)
    clean = base(input_ids=ids).logits
    plain = PeftModel.from_pretrained(base, adapted).eval()
    sae = SAE.load_from_disk(str(workspace.sae), device="cpu")
    handle = base.model.layers[1].register_forward_hook(
        lambda m, a, out: torch.where(ids[..., None] > 2, sae(out), out)
    )
    expected = plain(input_ids=ids).logits
    handle.remove()

    from saelora.models.adapters import load_adapter

    ours = load_adapter(saelora.load_model(str(workspace.model), device="cpu").model, str(adapted))
    found = saelora.load_sae(str(workspace.sae))
    mask = saelora.TokenPolicy().resolve(saelora.load_model(str(workspace.model), device="cpu").tokenizer)
    with torch.no_grad(), splice(ours, {Hookpoint(1): found.sae}, mask):  # type: ignore[dict-item]
        logits = ours(input_ids=ids).logits
    torch.testing.assert_close(logits, expected)
    assert (logits - clean).abs().max() > 0.1


# SPEC 3.3
def test_base_model_and_sae_files_are_as_they_were(workspace: ws.Workspace, tmp_path: Path) -> None:
    before = ws.files_in(workspace.root)
    assert workspace.adapt(tmp_path / "run", "--quiet", tokens=2 * ws.CONTEXT, placement="all") == 0
    assert ws.files_in(workspace.root) == before


# SPEC 11.9
def test_evaluate_gives_the_figures_that_adapt_gave(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--adapter", str(adapted), "--json", "--quiet"]) == 0
    measured = json.loads(capsys.readouterr().out)
    recorded = results_of(adapted)
    shared = set(measured) & set(recorded)
    assert {name for name in FIGURES if not name.endswith(("trained", "training", "second"))} <= shared
    assert {name: measured[name] for name in shared} == {name: recorded[name] for name in shared}


def test_another_seed_gives_another_adapter(workspace: ws.Workspace, adapted: Path, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "other", "--quiet", seed=1) == 0
    assert not same_weights(adapted, tmp_path / "other")


def test_json_is_all_there_is_on_stdout(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.adapt(tmp_path / "run", "--json", tokens=4 * ws.CONTEXT) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == results_of(tmp_path / "run")
    assert printed.err  # progress, beside the results


def test_quiet_says_nothing_but_the_results(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", tokens=4 * ws.CONTEXT) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "spliced + adapted" in printed.out


def test_python_call_equals_the_command(workspace: ws.Workspace, adapted: Path, tmp_path: Path) -> None:
    results = saelora.adapt(
        model=str(workspace.model),
        sae=[str(workspace.sae)],
        data=str(workspace.data),
        out=str(tmp_path / "run"),
        quiet=True,
        **ws.ADAPT,
    )
    assert same_weights(adapted, tmp_path / "run")
    assert results == results_of(tmp_path / "run")
    changing = {"seconds_training", "tokens_per_second", "history"}
    assert {k: v for k, v in results.items() if k not in changing} == {
        k: v for k, v in results_of(adapted).items() if k not in changing
    }


def test_config_file_that_a_run_recorded_repeats_it_bit_for_bit(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path
) -> None:
    flags = ["--config", str(adapted / "config.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["adapt", *flags]) == 0
    assert same_weights(adapted, tmp_path / "run")


def test_two_saes_at_once_are_both_spliced_and_recorded(workspace: ws.Workspace, tmp_path: Path) -> None:
    second = ws.write_sae(tmp_path / "second", layer=2, seed=1)
    assert workspace.adapt(tmp_path / "run", "--quiet", sae=[workspace.sae, second], tokens=8 * ws.CONTEXT) == 0
    manifest = json.loads((tmp_path / "run" / "saelora.json").read_text())
    assert [sae["hookpoint"] for sae in manifest["saes"]] == ["layers.1.resid_post", "layers.2.resid_post"]
    assert set(results_of(tmp_path / "run")["saes"]) == {"layers.1.resid_post", "layers.2.resid_post"}
    assert layers_adapted(tmp_path / "run") == {2, 3}


@pytest.mark.parametrize(("placement", "layers"), [("all", {0, 1, 2, 3}), ("layers:2", {2}), ("after", {2, 3})])
def test_placement_decides_which_layers_are_adapted(
    workspace: ws.Workspace, tmp_path: Path, placement: str, layers: set[int]
) -> None:
    run = tmp_path / "run"
    assert workspace.adapt(run, "--quiet", placement=placement, tokens=16 * ws.CONTEXT) == 0
    assert layers_adapted(run) == layers
    results = results_of(run)
    assert results["kl_adapted"] < results["kl_sae"]


# SPEC 12.9
def test_an_existing_out_is_refused_and_left_as_it_is(
    workspace: ws.Workspace, adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ws.files_in(adapted)
    assert workspace.adapt(adapted, "--quiet", seed=1) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert ws.files_in(adapted) == before


def old_run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("rank: 1")
    (run / "old.txt").write_text("old")
    return run


def test_overwrite_starts_anew(workspace: ws.Workspace, tmp_path: Path) -> None:
    run = old_run(tmp_path)
    assert workspace.adapt(run, "--quiet", "--overwrite", tokens=4 * ws.CONTEXT) == 0
    assert not (run / "old.txt").exists()
    assert results_of(run)["n_tokens_trained"] == 4 * ws.CONTEXT


def test_recorded_config_never_overwrites_by_itself(
    workspace: ws.Workspace, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert workspace.adapt(run, "--quiet", "--overwrite", tokens=4 * ws.CONTEXT) == 0
    shutil.copytree(adapted, other)
    assert main(["adapt", "--config", str(run / "config.yaml"), "--out", str(other)]) == 2
    assert ws.files_in(other) == ws.files_in(adapted)


def test_overwrite_leaves_a_folder_of_something_else_alone(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    assert workspace.adapt(tmp_path, "--quiet", "--overwrite") == 2
    assert "no saelora run" in capsys.readouterr().err
    assert list(ws.files_in(tmp_path)) == ["thesis.txt"]


def test_overwrite_keeps_what_is_there_when_the_new_run_cannot_start(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = old_run(tmp_path)
    assert workspace.adapt(run, "--quiet", "--overwrite", track="nosuchtracker") == 2
    assert workspace.adapt(run, "--quiet", "--overwrite", lr=-1) == 2
    assert (run / "old.txt").exists()


def test_an_sae_that_costs_nothing_is_no_error(workspace: ws.Workspace, tmp_path: Path) -> None:
    sae = ws.perfect_sae(tmp_path / "perfect", layer=1)
    assert workspace.adapt(tmp_path / "run", "--quiet", sae=sae, tokens=4 * ws.CONTEXT) == 0
    results = results_of(tmp_path / "run")
    assert results["kl_sae"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "run" / "learning_curve.png").exists()


def test_one_held_out_row_is_enough(workspace: ws.Workspace, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", tokens=4 * ws.CONTEXT, eval_tokens=ws.CONTEXT) == 0
    assert (tmp_path / "run" / "learning_curve.png").exists()


@pytest.mark.parametrize("flags", ["--rslora --init gaussian", "--dora --loss sequence_sum"])
def test_kinds_of_adapter_and_loss_train(workspace: ws.Workspace, tmp_path: Path, flags: str) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", *flags.split(), tokens=16 * ws.CONTEXT) == 0
    results = results_of(tmp_path / "run")
    assert results["kl_adapted"] < results["kl_sae"]


def test_samples_compare_the_three_models(workspace: ws.Workspace, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", tokens=4 * ws.CONTEXT, samples=2, context=24) == 0
    samples = results_of(tmp_path / "run")["samples"]
    assert len(samples) == 2
    assert all({"prompt", "original", "spliced", "adapted"} <= sample.keys() for sample in samples)


def test_tensorboard_gets_event_files(workspace: ws.Workspace, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    assert workspace.adapt(tmp_path / "run", "--quiet", tokens=4 * ws.CONTEXT, track="tensorboard") == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
