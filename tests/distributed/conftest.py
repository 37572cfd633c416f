"""One launch of two processes for all that they do together, and the same jobs of one process."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import draft
import saelora
import workspace as ws
from launch import finished
from saelora.train.interrupt import Interrupted

# rows in all: 61, so that the last batch of 4 has one row for two processes
ADAPT: dict[str, Any] = {**ws.ADAPT, "tokens": 61 * ws.CONTEXT, "batch_rows": 4, "eval_tokens": 13 * ws.CONTEXT}
LONG = {**ADAPT, "tokens": 60 * ws.CONTEXT, "batch_rows": 2, "checkpoint_seconds": 0, "lr": 1e-3}
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
BOTH |= {"history_points": 0}
LINEAR: dict[str, Any] = {**BOTH, "method": "linear", "objective": "kl"}
FINETUNE = {k: v for k, v in BOTH.items() if k not in ("method", "rank", "sae_lr")} | {"lr": 1e-3}
REPLACED: dict[str, Any] = {**ADAPT, "tokens": 21 * ws.CONTEXT, "placement": "all", "history_points": 0}
TRANSCODERS: dict[str, Any] = {key: value for key, value in TRAIN_SAE.items() if key not in ("hookpoint", "d_sae")}
TRANSCODERS |= {"architecture": "skip-transcoder", "transcoder_layers": "all", "tokens": 20 * ws.CONTEXT, "d_sae": 64}
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
            "transcoders": ("train_sae", {**common, **TRANSCODERS}),
        }
        own = [ws.write_transcoder(root / "set" / f"layers.{i}.mlp_out", layer=i) for i in range(ws.N_LAYERS)]
        for mode in ("cascading", "parallel"):
            options = {**common, **REPLACED, "transcoders": [str(own[0].parent)], "replacement_mode": mode}
            self.jobs[mode] = ("adapt", options)
        base = {k: v for k, v in ws.ADAPT.items() if k not in ("history_points", "history_tokens", "rank")}
        self.recipe = {
            "base": {**base, **adapter, "tokens": 8 * ws.CONTEXT},
            "grid": {"seed": [0, 1, 2], "rank": [1, 2]},
        }
        self.alone: dict[str, Any] = {}

    def run_alone(self) -> None:
        for name, (job, options) in self.jobs.items():
            self.alone[name] = getattr(saelora, job)(**options, out=str(self.one(name)), quiet=True)
        measured = {"adapter": str(self.one("adapt"))}
        self.alone["evaluate"] = saelora.evaluate(**measured, device="cpu", quiet=True)
        (self.root / "sweep.yaml").write_text(yaml.safe_dump(self.recipe))
        saelora.sweep(recipe=str(self.root / "sweep.yaml"), out=str(self.one("sweep")), quiet=True)

    def run_together(self) -> None:
        adapt, long, train = (self.jobs[name][1] for name in ("adapt", "long", "train"))
        others = ("both", "linear", "finetune", "e2e", "transcoders", "cascading", "parallel")
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
            if name in ("both", "linear", "finetune"):
                given[f"{name} sharded"] = (
                    job,
                    {**given[name][1], "out": str(self.two(f"{name}-sharded")), "shard": True},
                )
        (self.root / "given.json").write_text(json.dumps(given))
        script = Path(__file__).with_name("jobs_together.py")
        code, self.said, self.errors = finished(str(script), str(self.root))
        assert code == 0, self.errors[-20000:]
        assert "process group has NOT been destroyed" not in self.errors
        self.noticed = json.loads((self.root / "noticed.json").read_text())

    def one(self, name: str) -> Path:
        return self.root / "one" / name

    def two(self, name: str) -> Path:
        return self.root / "two" / name


@pytest.fixture(scope="session")
def runs(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found = Runs(tmp_path_factory.mktemp("runs"), workspace)
    for below in ("two", "promises"):
        (found.root / below).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        draft.without_rendering(patch)
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
