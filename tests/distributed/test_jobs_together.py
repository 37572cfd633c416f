"""Two processes end with what one ends with: adapters, SAEs and figures, sharded or not, resumed or not."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import workspace as ws
from launch import finished
from safetensors.torch import load_file

import saelora
from saelora.train.interrupt import Interrupted

pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.timeout(600)]  # the fixtures cost a launch

# rows in all: 61, so that the last batch of 4 has one row for two processes
ADAPT: dict[str, Any] = {**ws.ADAPT, "tokens": 61 * ws.CONTEXT, "batch_rows": 4, "eval_tokens": 13 * ws.CONTEXT}
LONG = {**ADAPT, "tokens": 120 * ws.CONTEXT, "batch_rows": 2, "checkpoint_seconds": 0, "lr": 1e-3}
TRAIN_SAE: dict[str, Any] = {
    **ws.COMMON,
    "hookpoint": ["layers.0.resid_post", "layers.1.resid_post", "layers.2.mlp_out"],
    "tokens": 75 * ws.CONTEXT,
    "batch_rows": 10,  # three passes of the model: the second round has work for one process only
    "d_sae": ws.D_SAE,
    "k": ws.K,
    "batch_tokens": 64,
    "dead_after_tokens": 1000,
}
# what trains SAEs in the model; rows in all: 21, so that the last batch has one for two processes
BOTH: dict[str, Any] = {**ADAPT, "tokens": 21 * ws.CONTEXT, "method": "lora+sae", "sae_lr": 1e-3, "objective": "kl+mse"}
LINEAR: dict[str, Any] = {**BOTH, "method": "linear", "objective": "kl"}
FINETUNE = {k: v for k, v in BOTH.items() if k not in ("method", "rank", "sae_lr")} | {"lr": 1e-3}
END_TO_END: dict[str, Any] = {**TRAIN_SAE, "tokens": 20 * ws.CONTEXT, "objective": "e2e+downstream"}


class Runs:
    """The folders of one process's runs and of two processes', by name."""

    def __init__(self, root: Path, workspace: ws.Workspace):
        self.root = root
        common = {"model": str(workspace.model), "data": str(workspace.data)}
        adapter = {**common, "sae": [str(workspace.sae)]}
        self.jobs: dict[str, tuple[str, dict[str, Any]]] = {
            "adapt": ("adapt", {**adapter, **ADAPT, "samples": 1, "track": "tensorboard"}),
            "long": ("adapt", {**adapter, **LONG}),
            "train": ("train_sae", {**common, **TRAIN_SAE, "checkpoint_seconds": 0}),
            "both": ("adapt", {**adapter, **BOTH}),
            "linear": ("adapt", {**adapter, **LINEAR}),
            "finetune": ("finetune_sae", {**adapter, **FINETUNE}),
            "e2e": ("train_sae", {**common, **END_TO_END}),
        }
        self.alone: dict[str, Any] = {}

    def run_alone(self) -> None:
        for name, (job, options) in self.jobs.items():
            self.alone[name] = getattr(saelora, job)(**options, out=str(self.one(name)), quiet=True)
        measured = {"adapter": str(self.one("adapt"))}
        self.alone["evaluate"] = saelora.evaluate(**measured, device="cpu", quiet=True)

    def run_together(self) -> None:
        adapt, long, train = (self.jobs[name][1] for name in ("adapt", "long", "train"))
        others = ("both", "linear", "finetune", "e2e")
        given = {
            "adapt": ("adapt", {**adapt, "out": str(self.two("adapt"))}),
            "sharded": ("adapt", {**adapt, "track": None, "out": str(self.two("sharded")), "shard": True}),
            "resumed": ("adapt", {**long, "out": str(self.two("resumed")), "resume": True}),
            "evaluate": ("evaluate", {"adapter": str(self.one("adapt")), "device": "cpu"}),
            "train": ("train_sae", {**train, "out": str(self.two("train")), "shard": True}),
            "stopped": ("train_sae", {**train, "out": str(self.two("stopped"))}),
        }
        for name in others:
            job, options = self.jobs[name]
            given[name] = (job, {**options, "out": str(self.two(name)), "quiet": True})
            if name != "e2e":
                given[f"{name} sharded"] = (
                    job,
                    {**given[name][1], "out": str(self.two(f"{name}-sharded")), "shard": True},
                )
        (self.root / "given.json").write_text(json.dumps(given))
        script = Path(__file__).with_name("jobs_together.py")
        code, self.said, self.errors = finished(str(script), str(self.root))
        assert code == 0, self.errors[-20000:]
        self.noticed = json.loads((self.root / "noticed.json").read_text())

    def one(self, name: str) -> Path:
        return self.root / "one" / name

    def two(self, name: str) -> Path:
        return self.root / "two" / name


@pytest.fixture(scope="module")
def runs(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found = Runs(tmp_path_factory.mktemp("runs"), workspace)
    (found.root / "two").mkdir()
    found.run_alone()
    stop_alone(found.jobs["long"][1], found.two("resumed"))
    found.run_together()
    return found


def stop_alone(options: dict[str, Any], out: Path) -> None:
    """A run of one process, interrupted after a few steps."""
    metrics = out / "metrics.jsonl"

    def watch() -> None:
        while not metrics.exists() or metrics.read_text().count("grad_norm") < 4:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(Interrupted):
        saelora.adapt(**options, out=str(out), quiet=True)


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
def test_two_processes_adapt_as_one_does(runs: Runs, name: str, reference: str) -> None:
    assert_same_adapter(runs.two(name), runs.one(reference), 2e-5)
    assert_close(metrics_of(runs.two(name)), metrics_of(runs.one(reference)), 2e-5)
    ours, theirs = (json.loads((f / "results.json").read_text()) for f in (runs.two(name), runs.one(reference)))
    assert_close(ours, theirs, 2e-5)


def test_sharded_weights_change_no_bit_of_the_adapter(runs: Runs) -> None:
    assert_same_adapter(runs.two("sharded"), runs.two("adapt"), 0.0)


@pytest.mark.parametrize("sharded", ["", "-sharded"])
@pytest.mark.parametrize("name", ["both", "linear", "finetune"])
def test_two_processes_train_the_sae_in_the_model_as_one_does(runs: Runs, name: str, sharded: str) -> None:
    ours, theirs = runs.two(name + sharded), runs.one(name)
    if name == "both":
        assert_same_adapter(ours, theirs, 2e-5)
    below = "" if name == "finetune" else "sae"
    assert_same_sae(ours / below, theirs / below, 2e-5)
    assert_close(metrics_of(ours), metrics_of(theirs), 5e-5)
    assert_close(*(json.loads((f / "results.json").read_text()) for f in (ours, theirs)), 5e-5)


def test_end_to_end_saes_divided_over_processes_equal_those_of_one(runs: Runs) -> None:
    for hookpoint in TRAIN_SAE["hookpoint"]:
        assert_same_sae(runs.two("e2e") / hookpoint, runs.one("e2e") / hookpoint, 0.0)
    assert_close(metrics_of(runs.two("e2e")), metrics_of(runs.one("e2e")), 1e-9)


# SPEC 11.7
def test_evaluation_by_two_processes_draws_the_same_intervals(runs: Runs) -> None:
    expected = json.loads(json.dumps(runs.alone["evaluate"]))
    for noticed in runs.noticed:
        found = noticed["results"]["evaluate"]
        assert found["ci95"] == expected["ci95"]
        assert_close(found, expected, 1e-12)


def test_saes_divided_over_processes_equal_those_of_one_bit_for_bit(runs: Runs) -> None:
    for hookpoint in TRAIN_SAE["hookpoint"]:
        ours, theirs = (load_file(f("train") / hookpoint / "sae_weights.safetensors") for f in (runs.two, runs.one))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_close(metrics_of(runs.two("train")), metrics_of(runs.one("train")), 0.0)
    assert_close(runs.noticed[0]["results"]["train"], json.loads(json.dumps(runs.alone["train"])), 1e-9)


def test_signal_to_one_process_stops_both_and_one_alone_goes_on(runs: Runs) -> None:
    (signum, step), other = (noticed["stopped"] for noticed in runs.noticed)
    assert other == [signum, step]
    assert signum == signal.SIGTERM
    assert 2 <= step < 8
    options = {**runs.jobs["train"][1], "out": str(runs.two("stopped"))}
    saelora.train_sae(**options, resume=True, quiet=True)
    for hookpoint in TRAIN_SAE["hookpoint"]:
        parts = [f / hookpoint / "sae_weights.safetensors" for f in (runs.two("stopped"), runs.one("train"))]
        ours, theirs = map(load_file, parts)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_main_process_alone_writes(runs: Runs) -> None:
    main, other = (noticed["written"] for noticed in runs.noticed)
    assert other == []
    assert any("adapter_model.safetensors" in line for line in main)
    assert any("events.out.tfevents" in path.name for path in runs.two("adapt").rglob("*"))


def test_main_process_alone_prints(runs: Runs) -> None:
    assert runs.said.count("spliced + adapted") == 1
    assert runs.errors.count("loading ") == 6  # as often as a job was called without --quiet


def test_every_process_returns_the_results(runs: Runs) -> None:
    main, other = (noticed["results"] for noticed in runs.noticed)
    assert_close(other, main, 0.0)


def test_fewer_rows_a_batch_than_processes_are_refused(runs: Runs) -> None:
    for noticed in runs.noticed:
        assert noticed["too few rows"].startswith("batch_rows is 1 for 2 processes")
        assert "--batch-rows 2" in noticed["too few rows"]
