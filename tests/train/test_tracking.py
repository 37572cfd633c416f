"""Where numbers go, and what the learning rate does."""

import json
import math
from pathlib import Path

import pytest

from saelora.errors import InputError
from saelora.train.optim import lr_factor
from saelora.train.tracking import Metrics, Tracker

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
