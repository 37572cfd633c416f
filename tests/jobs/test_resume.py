"""A run that is stopped, killed or damaged goes on as if nothing had happened, bit for bit."""

import json
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import workspace as ws
from forked import Forks, Run
from saelora.cli import main
from saelora.files import MARK
from saelora.train.checkpoint import load_checkpoint

N_STEPS = 90
RUN: dict[str, Any] = {**ws.ADAPT, "tokens": N_STEPS * ws.CONTEXT, "batch_rows": 1, "dropout": 0.1, "lr": 1e-3}
RUN |= {"history_tokens": ws.CONTEXT, "eval_tokens": 2 * ws.CONTEXT}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Where real runs begin, each in a process of its own."""
    found = Forks(tmp_path_factory.mktemp("said"))
    yield found
    found.close()


def wait_for(condition: Callable[[], bool], run: Run) -> None:
    while not condition():
        if run.poll() is not None:
            pytest.fail(f"ended by itself with {run.returncode}: {run.finish()[-2000:]}")
        time.sleep(0.005)


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_logged(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_text().count('"grad_norm"') if file.exists() else 0


def assert_same_run(out: Path, reference: Path) -> None:
    """Weights bit for bit, and every logged number but the seconds."""
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, reference))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    without_seconds = [[{**row, "seconds": 0} for row in metrics_of(folder)] for folder in (out, reference)]
    assert without_seconds[0] == without_seconds[1]
    figures = [json.loads((folder / "results.json").read_text()) for folder in (out, reference)]
    assert figures[0]["ci95"] == figures[1]["ci95"]
    assert [row["n_tokens"] for row in figures[0]["history"]] == [row["n_tokens"] for row in figures[1]["history"]]


def flags(workspace: ws.Workspace, out: Path, **options: Any) -> list[str]:
    given = {"sae": workspace.sae, "data": workspace.data, "out": out, **RUN, **options}
    return [str(workspace.model), *ws.as_flags(given)]


@pytest.fixture(scope="module")
def uninterrupted(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(["adapt", *flags(workspace, out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def killed(forks: Forks, workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SIGKILL leaves of a run that saves after every step. Copy it before going on with it."""
    out = tmp_path_factory.mktemp("killed") / "run"
    with forks.started("adapt", *flags(workspace, out, checkpoint_seconds=0)) as run:
        wait_for(lambda: steps_logged(out) >= 5, run)
        run.send_signal(signal.SIGKILL)
        run.finish()
    assert run.returncode == -signal.SIGKILL
    return out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
# SPEC 11.6
def test_interrupted_run_says_how_to_go_on_and_ends_as_if_uninterrupted(
    forks: Forks, workspace: ws.Workspace, uninterrupted: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    with forks.started("adapt", *flags(workspace, out)) as run:
        wait_for(lambda: steps_logged(out) >= 3, run)
        run.send_signal(signum)
        said = run.finish()
    assert run.returncode == code
    assert "Traceback" not in said
    stopped = said.strip().splitlines()[-1]
    assert f"saelora adapt --config {out}/config.yaml --out {out} --resume" in stopped
    found = load_checkpoint(out / "checkpoints")
    assert found is not None
    assert f"step {found[1]['step']} of {N_STEPS}" in stopped
    assert 3 <= found[1]["step"] < N_STEPS
    assert not (out / "results.json").exists()

    words = stopped.split("saelora adapt ")[1].split()
    assert main(["adapt", *words, "--quiet"]) == 0
    assert_same_run(out, uninterrupted)
    assert not (out / "checkpoints").exists()


def _intact(checkpoints: Path) -> None:
    return


def _truncate_newest(checkpoints: Path) -> None:
    state = sorted(checkpoints.glob("step-*"))[-1] / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])


def _flip_a_bit_of_the_newest(checkpoints: Path) -> None:
    state = sorted(checkpoints.glob("step-*"))[-1] / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)


def _leave_a_half_written_one(checkpoints: Path) -> None:
    (checkpoints / ".part-99999").mkdir()
    (checkpoints / ".part-99999" / "state.pt").write_bytes(b"half")


DAMAGE = {
    "intact": (_intact, 0),
    "truncated": (_truncate_newest, 1),
    "bit-flipped": (_flip_a_bit_of_the_newest, 1),
    "half-written": (_leave_a_half_written_one, 0),
}


@pytest.mark.parametrize("damage", DAMAGE)
# SPEC 11.6
def test_killed_run_goes_on_from_its_newest_good_checkpoint(
    workspace: ws.Workspace, uninterrupted: Path, killed: Path, tmp_path: Path, damage: str
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    spoil, back = DAMAGE[damage]
    saved = sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))
    spoil(out / "checkpoints")
    before = [row for row in metrics_of(killed) if row["step"] <= saved[-1 - back]]
    assert main(["adapt", *flags(workspace, out, checkpoint_seconds=1000), "--resume", "--quiet"]) == 0
    assert_same_run(out, uninterrupted)
    # the seconds tell which lines are of the killed run, and so that it did not start from scratch
    after = metrics_of(out)
    assert after[: len(before)] == before
    assert after[len(before)]["step"] == saved[-1 - back] + 1


@pytest.mark.parametrize(("key", "value"), [("lr", 2e-3), ("rank", 8), ("dropout", 0.2)])
# SPEC 12.9
def test_resume_with_another_option_is_refused_by_name(
    workspace: ws.Workspace, killed: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ws.files_in(killed)
    assert main(["adapt", *flags(workspace, killed, checkpoint_seconds=0, **{key: value}), "--resume", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"started with {key} {RUN[key]!r}, now it is {value!r}" in said
    assert ws.files_in(killed) == before


def test_resume_of_a_finished_run_says_so_and_changes_nothing(
    workspace: ws.Workspace, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ws.files_in(uninterrupted)
    assert main(["adapt", *flags(workspace, uninterrupted), "--resume", "--json"]) == 0
    printed = capsys.readouterr()
    assert "finished already" in printed.err
    assert json.loads(printed.out) == json.loads(before["results.json"])
    assert ws.files_in(uninterrupted) == before


def test_resume_does_not_write_into_a_folder_of_something_else(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    assert main(["adapt", *flags(workspace, tmp_path), "--resume", "--quiet"]) == 2
    assert "no saelora run" in capsys.readouterr().err
    assert list(ws.files_in(tmp_path)) == ["thesis.txt"]


def test_resume_with_nothing_there_yet_starts_the_run(workspace: ws.Workspace, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "run", "--quiet", "--resume", tokens=4 * ws.CONTEXT) == 0
    assert (tmp_path / "run" / "results.json").exists()


# SPEC 12.7
def test_loss_that_blows_up_ends_in_one_line_and_keeps_a_finite_state(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "run", {"alpha": 1e30, "lr": 1, "schedule": "constant", "warmup": 0}
    assert workspace.adapt(out, "--quiet", **options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "training stopped at step" in said
    assert "lower the learning rate" in said
    assert not (out / "results.json").exists()
    found = load_checkpoint(out / "checkpoints")
    assert found is not None
    assert all(torch.isfinite(weights).all() for weights in found[0]["objective"]["default"]["adapter"].values())
    logged = metrics_of(out)
    assert workspace.adapt(out, "--quiet", "--resume", **options) == 2
    assert capsys.readouterr().err == said
    assert metrics_of(out) == logged


def test_full_disk_ends_in_one_line(
    workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # files beyond it fail, as on a full disk
    try:
        code = workspace.adapt(tmp_path / "run", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1
    assert "writ" in said


# SPEC 11.6
def test_interrupted_sae_training_ends_as_if_uninterrupted(
    forks: Forks, workspace: ws.Workspace, tmp_path: Path
) -> None:
    out, reference = tmp_path / "run", tmp_path / "reference"
    options = {"tokens": 400 * ws.CONTEXT, "batch_rows": 4, "eval_tokens": 2 * ws.CONTEXT}
    with forks.started("train-sae", *workspace.train_sae_flags(out, **options)) as run:
        wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 300, run)
        run.send_signal(signal.SIGTERM)
        said = run.finish()
    assert run.returncode == 143
    assert f"saelora train-sae --config {out}/config.yaml --out {out} --resume" in said.strip().splitlines()[-1]
    assert not (out / "sae_weights.safetensors").exists()

    assert workspace.train_sae(out, "--resume", "--quiet", **options) == 0
    assert workspace.train_sae(reference, "--quiet", **options) == 0
    ours, theirs = (load_file(folder / "sae_weights.safetensors") for folder in (out, reference))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [[{**row, "seconds": 0} for row in metrics_of(folder)] for folder in (out, reference)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite"]])
def test_a_second_run_into_one_folder_is_refused_and_the_first_unharmed(
    forks: Forks, workspace: ws.Workspace, uninterrupted: Path, tmp_path: Path, flag: list[str]
) -> None:
    out = tmp_path / "run"
    with forks.started("adapt", *flags(workspace, out)) as first:
        wait_for(lambda: steps_logged(out) >= 1, first)
        with forks.started("adapt", *flags(workspace, out), *flag) as second:
            said = second.finish()
        assert second.returncode == 2
        assert said.strip().splitlines()[-1].startswith("saelora: ")
        assert str(first.pid) in said or not flag  # without a flag, what is there is reason enough
        first.finish()
        assert first.returncode == 0
    assert_same_run(out, uninterrupted)


def test_resume_of_a_finished_run_removes_what_a_kill_at_its_very_end_left(
    workspace: ws.Workspace, uninterrupted: Path, killed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    shutil.copytree(killed / "checkpoints", out / "checkpoints")
    (out / f"{MARK}part-1").write_text("half")
    assert main(["adapt", *flags(workspace, out), "--resume", "--quiet"]) == 0
    assert ws.files_in(out) == ws.files_in(uninterrupted)
