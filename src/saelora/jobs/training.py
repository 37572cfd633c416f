"""The one way to train: a loop with progress, evaluations, a tracker, and advice when it is stopped."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch

from saelora.console import Console
from saelora.core.group import ALONE, Group
from saelora.jobs.run import RECORDED
from saelora.train.interrupt import Interrupted
from saelora.train.loop import Loop, LoopConfig, LoopState, Objective, Rows, within_reach
from saelora.train.tracking import Tracker

Row = dict[str, float]
Advice = Callable[[Loop], str]  # what to say after "stopped after N tokens "
GPU_LOG_EVERY = 10  # steps: reading a loss makes the host wait for the device


class Steps(Protocol):
    """What every training command's options say of its loop."""

    @property
    def batch_rows(self) -> int | None:
        """None: 1."""
        ...

    @property
    def context(self) -> int: ...
    @property
    def checkpoint_seconds(self) -> float: ...


def train(
    objective: Objective,
    rows: Rows,
    options: Steps,
    folder: Path,
    console: Console,
    *,
    device: torch.device,
    label: str,
    note: Callable[[Row], str | None],
    advice: Advice,
    evaluate: Callable[[int], Row] | None = None,
    evaluate_at: Iterable[int] = (),
    tracker: Tracker | None = None,
    resume: bool = True,
    group: Group = ALONE,
) -> LoopState:
    """Train to the end of the rows, or go on where an interruption left it.

    Args:
        rows: packed, [n_rows, context].
        folder: for metrics.jsonl and checkpoints.
        device: the model's.
        note: what the progress bar says of a logged row; None leaves what it said before.
        evaluate: told of the steps done; gives what joins the history. Called before the first step and at the end too.
        evaluate_at: steps after which to evaluate.
        resume: go on from the newest checkpoint in the folder, if there is one.

    Raises:
        InputError: as the objective's check, or a folder that cannot be written to.
        Interrupted: stopped by a signal after saving a checkpoint; it says how to go on.
    """
    config = LoopConfig(
        options.batch_rows or 1,
        log_every=1 if device.type == "cpu" else GPU_LOG_EVERY,
        evaluate_at=tuple(sorted(set(evaluate_at))),
        checkpoint_seconds=options.checkpoint_seconds,
    )
    tracker = tracker or Tracker(None, folder, {})
    loop = Loop(objective, within_reach(rows, device), config, folder, tracker, group=group)
    if evaluate is not None:
        loop.evaluate = lambda: evaluate(loop.state.step)
    with console.progress(label, len(rows) * options.context) as bar:
        loop.report = lambda row: bar.update(int(row["n_tokens"]), note(row))
        if resume and loop.resume():
            bar.start_at(loop.state.n_tokens)
        try:
            return loop.run()
        except Interrupted as stop:
            raise stop.with_advice(f"stopped after {loop.state.n_tokens:,} tokens {advice(loop)}") from None
        finally:
            tracker.close()


def evenly(n_rows: int, batch_rows: int, points: int) -> set[int]:
    """Steps that divide a run into so many equal parts, the last one among them."""
    n_steps = -(-n_rows // batch_rows)
    return {max(1, round(n_steps * i / points)) for i in range(1, points + 1)}


def repeat_command(command: str) -> Advice:
    """For a command that makes one run, with the options that it recorded."""
    return lambda loop: (
        f"(step {loop.state.step} of {loop.n_steps}) and saved; to go on, repeat the command with --resume, or: "
        f"saelora {command} --config {loop.folder / RECORDED} --out {loop.folder} --resume"
    )


def repeat_collection(what: str) -> Advice:
    """For a command that makes many."""
    return lambda loop: f"of this {what} and saved; to go on, repeat the command with --resume"
