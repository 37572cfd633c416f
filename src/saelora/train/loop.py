"""The one training loop. It knows data order, logging, evaluation, checkpoints and interruption, and it knows
objectives only by a protocol."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from saelora.core.group import ALONE, Group
from saelora.errors import InputError, NonFiniteLoss
from saelora.train.checkpoint import StateDict, load_checkpoint, save_checkpoint
from saelora.train.interrupt import Interrupted, StopRequest
from saelora.train.tracking import Metrics, Tracker


class Objective(Protocol):
    """Something that one batch of rows improves."""

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Optimise once on packed rows [n_rows, context]; ``progress`` in [0, 1) is what is done before.

        Returns 0-d tensors, left on device, "loss" among them. Raises NonFiniteLoss before touching a weight.
        With several processes each is given all rows of the batch, and all return and raise the same.
        """
        ...

    def check(self, rows: Tensor) -> None:
        """Before the first step of a process: raise InputError where a step on rows like these would not compute what
        the model itself computes. Changes nothing."""
        ...

    def state_dict(self) -> StateDict:
        """All that the next step depends on; complete in the main process, and called in every one."""
        ...

    def load_state_dict(self, state: StateDict) -> None: ...


class Rows(Protocol):
    """Packed rows by index: a tensor [n_rows, context], or anything that yields one by a slice."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Tensor: ...


def within_reach(rows: Rows, device: torch.device) -> Rows:
    """The rows in pinned memory where a GPU is to read them: each batch is copied while the step before still runs."""
    return rows.pin_memory() if isinstance(rows, Tensor) and device.type == "cuda" else rows


@dataclass(frozen=True)
class LoopConfig:
    """How a run is cut into steps and what happens between them; all counts in steps, times in seconds."""

    batch_rows: int
    log_every: int = 1
    evaluate_at: tuple[int, ...] = ()  # steps after which the evaluator is called
    checkpoint_seconds: float = 120.0


@dataclass
class LoopState:
    """What a run has done so far; goes into every checkpoint."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0  # training alone: neither evaluation nor checkpoints
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Loop:
    """One run: an objective, its rows, and a folder to write to.

    ``evaluate`` returns the numbers that join the history; ``report`` is told of every logged row (progress bars).
    With several processes each runs the same loop; the main one alone writes and reports.
    """

    objective: Objective
    rows: Rows
    config: LoopConfig
    folder: Path
    tracker: Tracker
    evaluate: Callable[[], dict[str, float]] | None = None
    report: Callable[[dict[str, float]], None] = lambda row: None
    group: Group = ALONE
    state: LoopState = field(default_factory=LoopState)
    _metrics: Metrics | None = field(default=None, init=False)  # in the main process, while running
    _saved: int | None = field(default=None, init=False)  # the step of the newest checkpoint
    _checked: bool = field(default=False, init=False)

    @property
    def n_steps(self) -> int:
        return math.ceil(len(self.rows) / self.config.batch_rows)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def resume(self) -> bool:
        """Go back to the newest good checkpoint, if there is one."""
        found = self.group.on_main(lambda: load_checkpoint(self.checkpoints))
        if found is None:
            return False
        state, meta = found
        self.objective.load_state_dict(state["objective"])
        self.state = LoopState(**{k: meta[k] for k in ("step", "n_tokens", "seconds", "history")})
        self._restore_rng([state["rng"], *state.get("rng_others", [])])
        self._saved = self.state.step
        return True

    def save(self) -> None:
        """Write a checkpoint, where the newest is not of this step already; every process has to call it."""
        if self._saved == self.state.step:
            return
        rngs = self.group.gather_on_main(_rng())
        state = {"objective": self.objective.state_dict(), "rng": _rng(), "rng_others": rngs[1:]}
        meta = {**vars(self.state)}
        self.group.on_main(lambda: save_checkpoint(self.checkpoints, self.state.step, state, meta))
        self._saved = self.state.step

    def _restore_rng(self, saved: list[StateDict]) -> None:
        """Each process gets its own random state back; one more process than before begins with a new one."""
        if self.group.rank < len(saved):
            _set_rng(saved[self.group.rank])
        else:
            self._part_rng()

    def _part_rng(self) -> None:
        """Different dropout in each process; the main one goes on as if it were alone."""
        if not self.group.is_main:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.group.rank + 7_919 * self.state.step)

    def run(self) -> LoopState:
        """Train to the end of the rows.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after the step in hand, with a checkpoint written.
            InputError: the loss is not finite; the last good state is in the newest checkpoint.
        """
        begun = self.state.step > 0 or bool(self.state.history)
        if self.group.is_main:
            self._metrics = Metrics(self.folder / "metrics.jsonl", after_step=self.state.step if begun else None)
        if not begun:
            self._part_rng()
        saved_at = time.monotonic()
        with StopRequest() as stop:
            if self.evaluate is not None and not begun:
                self._evaluate()
            while self.state.step < self.n_steps:
                row = self._step()
                if row is not None:
                    self._log(row, row)
                if self.evaluate is not None and self.state.step in self.config.evaluate_at:
                    self._evaluate()
                due = time.monotonic() - saved_at > self.config.checkpoint_seconds and self.state.step < self.n_steps
                signum, save = self.group.max(stop.signum or 0, due)
                if signum:
                    self.save()
                    raise Interrupted(signum, self.state.step)
                if save:
                    self.save()
                    saved_at = time.monotonic()
        self.save()
        return self.state

    def _step(self) -> dict[str, float] | None:
        """One step; its metrics on logging steps, which are the only ones to wait for the device."""
        first = self.state.step * self.config.batch_rows
        rows = self.rows[first : first + self.config.batch_rows]
        if not self._checked:
            self.objective.check(rows)
            self._checked = True
        started = time.perf_counter()
        try:
            out = self.objective.step(rows, first / len(self.rows))
        except NonFiniteLoss as error:
            self.save()  # the step has changed nothing: what is in memory is the last good state
            raise self._stopped(str(error)) from error
        last = self.state.step + 1 == self.n_steps
        logging = (self.state.step + 1) % self.config.log_every == 0 or last
        values = {k: float(v) for k, v in out.items()} if logging else None
        if values is not None and not math.isfinite(values["loss"]):
            raise self._stopped(f"loss is {values['loss']}")
        self.state.step += 1
        self.state.n_tokens += rows.numel()
        self.state.seconds += time.perf_counter() - started
        if values is None:
            return None
        seconds = round(self.state.seconds, 3)
        return {"step": self.state.step, "n_tokens": self.state.n_tokens, "seconds": seconds, **values}

    def _stopped(self, why: str) -> InputError:
        kept = f"the last good state is in {self.checkpoints}; " if any(self.checkpoints.glob("step-*")) else ""
        return InputError(
            f"training stopped at step {self.state.step + 1} of {self.n_steps}: {why}; {kept}"
            "look for NaN in the SAE or model, or lower the learning rate"
        )

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        numbers = self.evaluate()
        row = {"n_tokens": self.state.n_tokens, "seconds": round(self.state.seconds, 3), **numbers}
        self.state.history.append(row)
        self._log({"step": self.state.step, **row}, row)

    def _log(self, row: dict[str, float], tracked: dict[str, float]) -> None:
        if self._metrics is None:
            return
        self._metrics.write(row)
        self.tracker.write(tracked, self.state.step)
        self.report(row)


def _rng() -> StateDict:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_rng(state: StateDict) -> None:
    torch.set_rng_state(state["cpu"])
    for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, device)
