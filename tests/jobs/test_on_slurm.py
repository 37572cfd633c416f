"""What SLURM is told and asked: by commands of its names that keep the script and answer from a file."""

import os
from pathlib import Path
from typing import Any

import pytest

from saelora.errors import InputError
from saelora.jobs.launch import on_slurm
from saelora.jobs.launch.on_slurm import SubmititLauncher

pytest.importorskip("submitit", reason='the launcher of SLURM; pip install "saelora[slurm]"')
COMMANDS = {
    "sbatch": 'cp "$1" {root}/script && echo Submitted batch job 7',
    "srun": "exit 1",
    "squeue": "cat {root}/states",
    "sacct": "exit 1",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the script is kept, and where the states of jobs are to be written, a line ``NUMBER STATE`` each."""
    for name, does in COMMANDS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does.format(root=tmp_path)}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(on_slurm, "_PAUSE", 0.0)
    (tmp_path / "states").touch()
    return tmp_path


def given(root: Path, **values: Any) -> SubmititLauncher:
    launcher = SubmititLauncher({"timeout_min": 240, **values}, root / "submitit")
    assert launcher.submit(("sweep", "r.yaml"), root / "a.log", root / "a.code") == "7"
    return launcher


def test_options_reach_sbatch_with_and_without_their_prefix(slurm: Path) -> None:
    more = {"partition": "gpu", "slurm_account": "lab", "gpus_per_node": 1, "mem_gb": 64, "setup": "module load cuda"}
    given(slurm, **more, sbatch={"reservation": "mine"})
    script = (slurm / "script").read_text().splitlines()
    wanted = ("partition=gpu", "account=lab", "gpus-per-node=1", "mem=64GB", "time=240", "reservation=mine")
    assert {f"#SBATCH --{each}" for each in (*wanted, "job-name=saelora")} <= {*script}
    assert script.index("module load cuda") < next(i for i, line in enumerate(script) if line.startswith("srun"))


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUE_HOLD", "SUSPENDED"])
def test_a_job_that_waits_or_runs_has_not_ended(state: str, slurm: Path) -> None:
    launcher = given(slurm)
    (slurm / "states").write_text(f"6 FAILED\n7 {state}\n")
    assert launcher.ended("7") is None
    assert launcher.still_there("7")
    assert not launcher.still_there("6")


@pytest.mark.parametrize(("states", "how"), [("7 TIMEOUT\n", "TIMEOUT"), ("7 PREEMPTED\n", "PREEMPTED"), ("", "GONE")])
def test_a_job_that_is_over_says_how_and_one_that_is_forgotten_too(states: str, how: str, slurm: Path) -> None:
    launcher = given(slurm)
    (slurm / "states").write_text(states)
    assert launcher.ended("7") == how


def test_a_controller_that_does_not_answer_ends_no_job(slurm: Path) -> None:
    launcher = given(slurm)
    (slurm / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert launcher.ended("7") is None


def test_what_slurm_refuses_is_one_line_in_its_words(slurm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho invalid partition specified: gpuu >&2\nexit 1\n")
    with pytest.raises(InputError, match=r"SLURM takes no such job: .*invalid partition specified: gpuu") as refused:
        given(slurm, partition="gpuu")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_jobs_of_slurm_have_a_time_limit_and_are_left_alone(slurm: Path) -> None:
    with pytest.raises(InputError, match="timeout_min=MINUTES"):
        SubmititLauncher({}, slurm)
    assert "scancel 7" in given(slurm).leave(["7"])
