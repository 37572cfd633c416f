"""Two processes end with what one ends with: adapters, SAEs and figures, sharded or not, resumed or not."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import saelora

pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.timeout(600)]  # the fixtures cost a launch


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(ours: Any, theirs: Any, rel: float) -> None:
    """The same keys, and the same numbers up to ``rel``, all the way down; seconds and what trained aside: fingerprints
    of weights that differ by rounding differ."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {"seconds", "seconds_training", "tokens_per_second", "adapter", "tuned_saes"}:
            assert_close(ours[key], theirs[key], rel)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_close(mine, other, rel)
    else:
        assert ours == (pytest.approx(theirs, rel=rel, abs=1e-9) if isinstance(theirs, float) else theirs)


def assert_same_adapter(folder: Path, reference: Path, rel: float) -> None:
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (folder, reference))
    assert ours.keys() == theirs.keys()
    for name, weights in theirs.items():
        assert (ours[name] - weights).norm() <= rel * weights.norm(), name


def assert_same_sae(folder: Path, reference: Path, rel: float) -> None:
    ours, theirs = (load_file(f / "sae_weights.safetensors") for f in (folder, reference))
    assert ours.keys() == theirs.keys()
    for name, weights in theirs.items():
        assert (ours[name] - weights).norm() <= rel * weights.norm(), name


@pytest.mark.parametrize(("name", "reference"), [("adapt", "adapt"), ("sharded", "adapt"), ("resumed", "long")])
# SPEC 11.7
def test_two_processes_adapt_as_one_does(runs: Any, name: str, reference: str) -> None:
    assert_same_adapter(runs.two(name), runs.one(reference), 2e-5)
    assert_close(metrics_of(runs.two(name)), metrics_of(runs.one(reference)), 2e-5)
    ours, theirs = (json.loads((f / "results.json").read_text()) for f in (runs.two(name), runs.one(reference)))
    assert_close(ours, theirs, 2e-5)


def test_sharded_weights_change_no_bit_of_the_adapter(runs: Any) -> None:
    assert_same_adapter(runs.two("sharded"), runs.two("adapt"), 0.0)


@pytest.mark.parametrize("sharded", ["", "-sharded"])
@pytest.mark.parametrize("name", ["both", "linear", "finetune"])
def test_two_processes_train_the_sae_in_the_model_as_one_does(runs: Any, name: str, sharded: str) -> None:
    ours, theirs = runs.two(name + sharded), runs.one(name)
    if name == "both":
        assert_same_adapter(ours, theirs, 2e-5)
    below = "" if name == "finetune" else "sae"
    assert_same_sae(ours / below, theirs / below, 2e-5)
    assert_close(metrics_of(ours), metrics_of(theirs), 5e-5)
    assert_close(*(json.loads((f / "results.json").read_text()) for f in (ours, theirs)), 5e-5)


def test_end_to_end_saes_divided_over_processes_equal_those_of_one(runs: Any) -> None:
    for hookpoint in runs.jobs["train"][1]["hookpoint"]:
        assert_same_sae(runs.two("e2e") / hookpoint, runs.one("e2e") / hookpoint, 0.0)
    assert_close(metrics_of(runs.two("e2e")), metrics_of(runs.one("e2e")), 1e-9)


@pytest.mark.parametrize("mode", ["cascading", "parallel"])
def test_two_processes_adapt_round_transcoders_as_one_does(runs: Any, mode: str) -> None:
    ours, theirs = runs.two(mode), runs.one(mode)
    assert_same_adapter(ours, theirs, 2e-5)
    assert_close(metrics_of(ours), metrics_of(theirs), 5e-5)
    assert_close(*(json.loads((f / "results.json").read_text()) for f in (ours, theirs)), 5e-5)
    assert metrics_of(theirs) != metrics_of(runs.one("parallel" if mode == "cascading" else "cascading"))


def test_transcoders_divided_over_processes_equal_those_of_one_bit_for_bit(runs: Any) -> None:
    for layer in range(4):
        assert_same_sae(*(f("transcoders") / f"layers.{layer}.mlp_out" for f in (runs.two, runs.one)), 0.0)
    assert_close(metrics_of(runs.two("transcoders")), metrics_of(runs.one("transcoders")), 0.0)


# SPEC 11.7
def test_evaluation_by_two_processes_draws_the_same_intervals(runs: Any) -> None:
    expected = json.loads(json.dumps(runs.alone["evaluate"]))
    for noticed in runs.noticed:
        found = noticed["results"]["evaluate"]
        assert found["ci95"] == expected["ci95"]
        assert_close(found, expected, 1e-12)


def test_saes_divided_over_processes_equal_those_of_one_bit_for_bit(runs: Any) -> None:
    for hookpoint in runs.jobs["train"][1]["hookpoint"]:
        ours, theirs = (load_file(f("train") / hookpoint / "sae_weights.safetensors") for f in (runs.two, runs.one))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_close(metrics_of(runs.two("train")), metrics_of(runs.one("train")), 0.0)
    assert_close(runs.noticed[0]["results"]["train"], json.loads(json.dumps(runs.alone["train"])), 1e-9)


def test_signal_to_one_process_stops_both_and_one_alone_goes_on(runs: Any) -> None:
    (signum, step), other = (noticed["stopped"] for noticed in runs.noticed)
    assert other == [signum, step]
    assert signum == signal.SIGTERM
    assert 2 <= step < 8
    options = {**runs.jobs["train"][1], "out": str(runs.two("stopped"))}
    saelora.train_sae(**options, resume=True, quiet=True)
    for hookpoint in runs.jobs["train"][1]["hookpoint"]:
        parts = [f / hookpoint / "sae_weights.safetensors" for f in (runs.two("stopped"), runs.one("train"))]
        ours, theirs = map(load_file, parts)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_main_process_alone_writes(runs: Any) -> None:
    main, other = (noticed["written"] for noticed in runs.noticed)
    assert other == []
    assert any("adapter_model.safetensors" in line for line in main)
    assert any("events.out.tfevents" in path.name for path in runs.two("adapt").rglob("*"))


def test_main_process_alone_prints(runs: Any) -> None:
    assert runs.said.count("spliced + adapted") == 1
    assert runs.errors.count("loading ") == 6  # as often as a job was called without --quiet


def test_every_process_returns_the_results(runs: Any) -> None:
    main, other = (noticed["results"] for noticed in runs.noticed)
    assert_close(other, main, 0.0)


def test_fewer_rows_a_batch_than_processes_are_refused(runs: Any) -> None:
    for noticed in runs.noticed:
        assert noticed["too few rows"].startswith("batch_rows is 1 for 2 processes")
        assert "--batch-rows 2" in noticed["too few rows"]


def table(out: Path) -> list[dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())["points"]
    varying = ("environment", "seconds_group")
    return [{k: v for k, v in row.items() if k not in varying} for row in rows]


def test_groups_of_a_sweep_are_spread_over_processes_and_the_table_is_the_same(runs: Any) -> None:
    (code, printed, said), other = (noticed["sweep"] for noticed in runs.noticed)
    assert code == 0, said
    assert printed.count("gap_closed") == 1
    assert other[:2] == [0, ""]  # the main process alone prints
    assert "group 1 of 2" in said  # of three groups the main process has two
    assert "group 3" not in said
    assert table(runs.two("sweep")) == table(runs.one("sweep"))
    assert len(table(runs.one("sweep"))) == 6
