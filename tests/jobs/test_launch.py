"""Sweeps and comparisons by jobs of submitit's local executor and of a Ray here: figures, losses, failures."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import workspace as ws
from saelora.cli import main
from saelora.files import MARK
from saelora.jobs.sweep_plan import expand, read_recipe

pytestmark = pytest.mark.xdist_group("launch")
LOCAL = ["--launcher", "submitit", "--launcher-options", "cluster=local"]
OTHERWISE = ("seconds_group", "environment", "n_branches")  # of a row: what is another's in every run


def recipe_of_sweep(path: Path, workspace: ws.Workspace, **changed: Any) -> Path:
    own = {k: v for k, v in ws.ADAPT.items() if k not in ("history_points", "history_tokens", "rank")}
    common = {"model": str(workspace.model), "sae": [str(workspace.sae)], "data": str(workspace.data)}
    base = {**own, **common, "tokens": 100 * ws.CONTEXT, "checkpoint_seconds": 0}
    path.write_text(yaml.safe_dump({"base": base, "grid": {"rank": [1, 2]}, **changed}))
    return path


def rows_of(out: Path, inside: str = "points") -> dict[str, dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())[inside]
    return {row["id"]: {key: value for key, value in row.items() if key not in OTHERWISE} for row in rows}


def command_in(log: Path) -> int:
    """The number of the process that a job's command runs in, once it says so."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("process ")]
    return int(lines[-1].split()[1])


class Killer(threading.Thread):
    """Kills the first job's command, or the scheduler's process that runs it, when it has made checkpoints."""

    def __init__(self, out: Path, *, worker: bool = False):
        super().__init__(daemon=True)
        self.out, self.worker, self.killed, self.metrics = out, worker, 0, ""

    def run(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and not self.killed:
            time.sleep(0.05)
            if found := list(self.out.glob("groups/*/checkpoints/step-*")):
                self.metrics = (found[0].parents[1] / "metrics.jsonl").read_text()
                command = command_in(next(self.out.glob("launch/*.log")))
                self.killed = psutil.Process(command).ppid() if self.worker else command
                os.kill(self.killed, signal.SIGKILL)


def lost_and_found(out: Path, killer: Killer) -> bool:
    """Whether the steps before the kill stand as they were made, seconds included: none of them was made again."""
    (metrics,) = [file.read_text() for file in out.glob("groups/*/metrics.jsonl")]
    first = killer.metrics.splitlines()[0]
    return bool(killer.killed) and metrics.splitlines()[0] == first and "seconds" in first


@pytest.fixture(scope="module")
def plain(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep without launcher, and its recipe."""
    root = tmp_path_factory.mktemp("plain")
    recipe = recipe_of_sweep(root / "r.yaml", workspace)
    assert main(["sweep", str(recipe), "--out", str(root / "out"), "--quiet"]) == 0
    return root / "out", recipe


# SPEC 11.6
def test_a_killed_job_is_given_again_goes_on_and_ends_as_without_launcher(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason='the launcher of SLURM; pip install "saelora[slurm]"')
    out, (alone, recipe) = tmp_path / "out", plain
    killer = Killer(out)
    killer.start()
    assert main(["sweep", str(recipe), "--out", str(out), *LOCAL]) == 0
    said = capsys.readouterr()
    assert "was lost (signal SIGKILL): given again, 1 of 2 times" in said.err
    assert "0 failed" not in said.err
    assert rows_of(out) == rows_of(alone)
    assert lost_and_found(out, killer)
    before = ws.files_in(out / "points")
    assert main(["sweep", str(recipe), "--out", str(out), "--resume", *LOCAL]) == 0
    again = capsys.readouterr()
    assert "2 of 2 points are done already" in again.err
    assert "job" not in again.err
    assert again.out == said.out
    assert ws.files_in(out / "points") == before
    assert not list(out.rglob(f"{MARK}*"))


def test_ray_runs_the_groups_and_one_that_fails_is_named_with_its_log(
    workspace: ws.Workspace, plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason='the launcher of Ray clusters; pip install "saelora[ray]"')
    bad = ws.write_sae(tmp_path / "narrow", layer=1, d_in=16)
    points = [{"sae": [str(workspace.sae)]}, {"sae": [str(bad)], "seed": 1}]
    recipe, out = recipe_of_sweep(tmp_path / "r.yaml", workspace, points=points, grid={"rank": [1]}), tmp_path / "out"
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    killer = Killer(out, worker=True)
    killer.start()
    try:
        assert main(["sweep", str(recipe), "--out", str(out), "--launcher", "ray"]) == 2
    finally:
        ray.shutdown()
    said = capsys.readouterr().err
    assert "was lost (WorkerCrashedError: " in said
    assert said.count("given again") == 1
    (done,) = rows_of(out).values()
    assert {done["id"]: done} == {key: row for key, row in rows_of(plain[0]).items() if key == done["id"]}
    last = said.splitlines()[-1]
    (failed,) = [point.id for point in expand(read_recipe(recipe), "r.yaml") if point.id != done["id"]]
    assert last.startswith(f"saelora: 1 of 2 groups failed, the rest is in {out}: ")
    assert "d_in 16" in last
    assert f"not done: {failed}; log: " in last
    assert "d_in 16" in Path(last.split("log: ")[1]).read_text()


BAD: dict[str, tuple[list[str], str]] = {
    "no value": (["partition"], "'partition': expected KEY=VALUE, such as timeout_min=240"),
    "unknown": (["cluster=local", "partion=gpu"], "'partion' in --launcher-options; did you mean 'partition'"),
    "twice": (["mem_gb=1", "mem-gb=2"], "--launcher-options gives mem_gb twice"),
    "cluster": (["cluster=moon"], "cluster is 'moon', expected slurm or local"),
    "two nodes": (["cluster=local", "nodes=2"], "nodes=2: a job is one process and uses one GPU"),
    "no YAML": (["cluster=local", "comment={"], "is no YAML value"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_options_that_the_launcher_does_not_know_are_one_line(
    case: str, workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason='the launcher of SLURM; pip install "saelora[slurm]"')
    options, expected = BAD[case]
    recipe = recipe_of_sweep(tmp_path / "r.yaml", workspace)
    words = ["sweep", str(recipe), "--out", str(tmp_path / "out"), "--launcher", "submitit", "--launcher-options"]
    assert main([*words, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("launcher", "package", "extra"), [("submitit", "submitit", "slurm"), ("ray", "ray", "ray")])
def test_a_launcher_that_is_not_installed_says_how_to_install_it(
    launcher: str,
    package: str,
    extra: str,
    workspace: ws.Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    recipe = recipe_of_sweep(tmp_path / "r.yaml", workspace)
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), "--launcher", launcher]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'pip install "saelora[{extra}]"' in line


def test_without_slurm_processes_of_this_machine_have_to_be_asked_for(
    workspace: ws.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason='the launcher of SLURM; pip install "saelora[slurm]"')
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = recipe_of_sweep(tmp_path / "r.yaml", workspace)
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), "--launcher", "submitit"]) == 2
    assert "there is no SLURM here (no sbatch)" in capsys.readouterr().err


def test_only_runs_the_points_that_are_named(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, (alone, recipe) = tmp_path / "out", plain
    first = next(iter(rows_of(alone)))
    assert main(["sweep", str(recipe), "--out", str(out), "--only", first]) == 0
    assert rows_of(out) == {first: rows_of(alone)[first]}
    capsys.readouterr()
    assert main(["sweep", str(recipe), "--out", str(out), "--resume", "--only", "nobody"]) == 2
    assert f"there is no point 'nobody' to run: expected one of {first}" in capsys.readouterr().err
