"""The loop, with an objective small enough to follow by hand."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelora.errors import InputError, NonFiniteLoss
from saelora.train.checkpoint import load_checkpoint
from saelora.train.interrupt import Interrupted, StopRequest
from saelora.train.loop import Loop, LoopConfig
from saelora.train.tracking import Tracker


class RunningSum:
    """Adds what it sees, and a random number: order, repetition and random state all show in the total."""

    def __init__(self, *, fails_at: int | None = None, signal_at: int | None = None):
        self.total, self.progress = torch.zeros((), dtype=torch.float64), []
        self.fails_at, self.signal_at = fails_at, signal_at

    def check(self, rows):
        pass

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        self.progress.append(progress)
        if self.fails_at == len(self.progress):
            raise NonFiniteLoss("KL is nan")
        if self.signal_at == len(self.progress):
            os.kill(os.getpid(), signal.SIGTERM)
        self.total = 2 * self.total + rows.sum() + torch.rand(())
        return {"loss": self.total.clone()}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


ROWS = torch.arange(22).view(11, 2)


def loop(folder: Path, objective: Any, evaluate: Any = None, **options: Any) -> Loop:
    config = LoopConfig(**{"batch_rows": 2, "evaluate_at": (3, 6), **options})
    return Loop(objective, ROWS, config, folder, Tracker(None, folder, {}), evaluate)


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def measure() -> dict[str, float]:
    return {"kl": 0.5}


def test_every_row_is_seen_once_and_in_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = RunningSum()
    state = loop(tmp_path, objective).run()
    torch.manual_seed(0)
    expected = torch.zeros((), dtype=torch.float64)
    for first in range(0, 11, 2):
        expected = 2 * expected + ROWS[first : first + 2].sum() + torch.rand(())
    assert objective.total == expected
    assert (state.step, state.n_tokens) == (6, 22)
    assert objective.progress == [i / 11 for i in range(0, 11, 2)]


def test_history_holds_the_start_and_the_chosen_steps(tmp_path: Path) -> None:
    run = loop(tmp_path, RunningSum(), measure)
    run.run()
    assert [row["n_tokens"] for row in run.state.history] == [0, 12, 22]
    assert all(row["kl"] == 0.5 and "seconds" in row for row in run.state.history)
    assert [row["step"] for row in metrics(tmp_path) if "kl" in row] == [0, 3, 6]


def test_logging_steps_are_every_nth_and_the_last(tmp_path: Path) -> None:
    loop(tmp_path, RunningSum(), log_every=4).run()
    assert [row["step"] for row in metrics(tmp_path)] == [4, 6]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    torch.manual_seed(0)
    whole = RunningSum()
    reference = loop(tmp_path / "whole", whole, measure).run()
    torch.manual_seed(0)
    with pytest.raises(Interrupted) as caught:
        loop(tmp_path / "parts", RunningSum(signal_at=stop_at), measure).run()
    assert (caught.value.step, caught.value.exit_code) == (stop_at, 143)
    torch.manual_seed(123)  # resuming brings the random state back
    rest = RunningSum()
    second = loop(tmp_path / "parts", rest, measure)
    assert second.resume()
    state = second.run()
    assert rest.total == whole.total
    assert (state.step, state.n_tokens) == (reference.step, reference.n_tokens)
    assert [row["n_tokens"] for row in state.history] == [row["n_tokens"] for row in reference.history]
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_lines_after_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        loop(tmp_path, RunningSum(signal_at=2), measure).run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "n_tokens": 12, "loss": 0.0}\n{"step": 4, "n_tok')
    second = loop(tmp_path, RunningSum(), measure)
    second.resume()
    second.run()
    assert [row["step"] for row in metrics(tmp_path) if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_nothing_to_resume_says_so(tmp_path: Path) -> None:
    assert not loop(tmp_path, RunningSum()).resume()


@pytest.mark.parametrize("fails_at", [1, 4])
def test_non_finite_loss_keeps_the_last_good_state(tmp_path: Path, fails_at: int) -> None:
    torch.manual_seed(0)
    objective = RunningSum(fails_at=fails_at)
    with pytest.raises(InputError, match=f"stopped at step {fails_at} of 6: KL is nan") as caught:
        loop(tmp_path, objective, measure).run()
    assert "\n" not in str(caught.value)
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found[1]["step"] == fails_at - 1
    assert found[0]["objective"]["total"] == objective.total
    second = loop(tmp_path, RunningSum(), measure)
    assert second.resume()
    state = second.run()
    assert [row["n_tokens"] for row in state.history] == [0, 12, 22]
    steps = [row["step"] for row in metrics(tmp_path)]
    assert steps == [0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_checkpoints_come_as_often_as_asked(tmp_path: Path) -> None:
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    loop(often, RunningSum(), checkpoint_seconds=0).run()
    loop(seldom, RunningSum(), checkpoint_seconds=1000).run()
    assert len(list((often / "checkpoints").glob("step-*"))) == 2
    assert [path.name for path in (seldom / "checkpoints").iterdir()] == ["step-00000006"]


def test_first_signal_is_a_request_and_the_second_acts_as_usual() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    try:
        with StopRequest() as stop:
            assert stop.signum is None
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signum == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_put_back_when_nothing_happens() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
