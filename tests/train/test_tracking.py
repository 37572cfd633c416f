"""Where numbers go, and what the learning rate does."""

import json
import math
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from saelora.errors import InputError
from saelora.train.optim import lr_factor
from saelora.train.tracking import Metrics, Tracker, check_tracker

N = 50


def factors(**options: object) -> list[float]:
    return [lr_factor(i / N, 1 / N, **options) for i in range(N)]  # type: ignore[arg-type]


def test_constant_schedule_stays_at_the_peak() -> None:
    assert factors(schedule="constant") == [1.0] * N


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_falls_all_the_way_but_no_step_is_at_zero(schedule: str) -> None:
    values = factors(schedule=schedule)
    assert values == sorted(values, reverse=True)
    assert 0.97 < values[0] < 1
    assert 0 < values[-1] < 0.02
    assert sum(values) / N == pytest.approx(0.5, abs=1e-9)


def test_linear_and_cosine_follow_their_formulas() -> None:
    for i, (linear, cosine) in enumerate(zip(factors(schedule="linear"), factors(schedule="cosine"), strict=True)):
        done = (i + 0.5) / N
        assert linear == pytest.approx(1 - done)
        assert cosine == pytest.approx((1 + math.cos(math.pi * done)) / 2)


def test_warmup_rises_linearly_to_the_peak_at_its_last_step() -> None:
    values = factors(schedule="constant", warmup=0.2)
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10:] == [1.0] * 40


def test_metrics_appends_one_json_line_a_row(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "new" / "metrics.jsonl")
    metrics.write({"step": 1, "loss": 0.5})
    metrics.write({"step": 2, "loss": 0.25})
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_new_run_starts_a_new_file_and_a_resumed_one_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 2, "cut')
    Metrics(path, after_step=1)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    Metrics(path)
    assert path.read_text() == ""


def test_unknown_tracker_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tensorboard, wandb, trackio"):
        Tracker("abacus", tmp_path, {})


def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the tensorboard extra is not installed"
    )
    tracker = Tracker("tensorboard", tmp_path, {"lr": 0.1, "sae": ["a", "b"], "alpha": None})
    for step in (1, 2):
        tracker.write({"step": step, "loss": 0.5 / step, "note": "text is left out"}, step)
    tracker.close()
    (file,) = [f for f in tmp_path.rglob("events.out.tfevents.*") if f.parent.name == "saelora"]
    events = event_accumulator.EventAccumulator(str(file))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def wandb_at(home: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Somebody who has never logged in."""
    wandb = pytest.importorskip("wandb", reason="the wandb extra is not installed")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it keeps the settings of a process


def test_wandb_without_a_login_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb_at(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"nobody logged in: run wandb login, set WANDB_API_KEY, or WANDB_MODE=off"):
        check_tracker("wandb")


@pytest.mark.parametrize("how", ["mode", "key", "netrc"])
def test_wandb_with_a_login_or_offline_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    variables = {"mode": {"WANDB_MODE": "offline"}, "key": {"WANDB_API_KEY": "k" * 40}, "netrc": {}}[how]
    wandb_at(tmp_path, monkeypatch, **variables)
    if how == "netrc":
        import wandb

        host = urlsplit(wandb.setup().settings.base_url).hostname
        (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    check_tracker("wandb")


def test_wandb_offline_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb_at(tmp_path, monkeypatch, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    tracker = Tracker("wandb", tmp_path, {"lr": 0.1})
    tracker.write({"loss": 0.5}, 1)
    tracker.close()
    assert list(tmp_path.rglob("*.wandb"))


def test_a_tracker_that_cannot_start_is_refused_and_one_that_fails_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"tracker tensorboard cannot be started: .*; leave out --track"):
        Tracker("tensorboard", tmp_path / "file" / "run", {})
    tracker = Tracker("tensorboard", tmp_path, {})
    tracker.write({"loss": 0.5}, 1)
    assert tracker._accelerator is not None
    tracker._accelerator.trackers[0].writer = None  # as after a lost connection: every call fails
    for step in (2, 3):
        tracker.write({"loss": 0.5}, step)
    tracker.close()
    assert len(caplog.records) == 1
    assert "tracker tensorboard has failed, the run goes on without it" in caplog.text
