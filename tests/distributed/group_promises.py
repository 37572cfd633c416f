"""What each of two processes runs for test_group.py, at the end of jobs_together.py."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelora.core.group import Group
from saelora.errors import InputError, NonFiniteLoss
from saelora.train.interrupt import Interrupted
from saelora.train.loop import Loop, LoopConfig
from saelora.train.tracking import Tracker


class Draws:
    """Keeps a random number a step: order, repetition and random state all show."""

    def __init__(self, group: Group, *, signal_at: int | None = None, fails_at: int | None = None):
        self.group, self.signal_at, self.fails_at = group, signal_at, fails_at
        self.drawn: list[float] = []

    def check(self, rows):
        pass

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        n = len(self.drawn) + 1
        if n == self.fails_at:
            raise NonFiniteLoss("KL is nan")
        if n == self.signal_at and self.group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self.drawn.append(float(torch.rand(())))
        return {"loss": rows.sum().float()}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.group.gather(self.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"][self.group.rank]


def loop(group: Group, folder: Path, objective: Draws) -> Loop:
    tracker = Tracker(None, folder.parent, {})
    return Loop(objective, torch.ones(8, 2), LoopConfig(1), folder, tracker, group=group)


def exchanges(group: Group) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rank = group.rank
    tensors = [torch.tensor(1.0 + rank), torch.full((2, 2), 10.0**rank), torch.tensor([0.0, float("nan")][rank])]
    tensors += [torch.tensor([1.0, 1e-12], dtype=torch.float64) * (rank + 1)]
    group.sum_(tensors)
    found["sum"] = [tensor.tolist() for tensor in tensors]
    found["max"] = group.max(rank, 5 - rank, 0)
    found["on"] = group.on(1, lambda: f"from {rank}")
    try:
        group.on(1, refuse)
    except InputError as error:
        found["refused"] = str(error)
    turns = list(group.turns(5))
    found["turns"] = turns
    found["in turn"] = group.in_turn([index for index, counts in turns if counts])
    pieces = [torch.full((index + 1, 2), index)[: None if counts else 0] for index, counts in turns]
    found["tensors in turn"] = torch.cat(group.tensors_in_turn(pieces))[:, 1].tolist()
    found["shares"] = [[part.tolist() for part in (group.share(torch.arange(n)),) for part in part[:1]] for n in (1, 5)]
    found["weights"] = [group.share(torch.arange(n))[1] for n in (1, 5)]
    found["gathered on main"] = group.gather_on_main(rank)
    return found


def refuse() -> None:
    raise InputError("no good")


def loops(group: Group, root: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    whole = Draws(group)
    loop(group, root / "whole", whole).run()
    torch.manual_seed(0)
    stopped = None
    try:
        loop(group, root / "parts", Draws(group, signal_at=3)).run()
    except Interrupted as stop:
        stopped = [stop.signum, stop.step]
    torch.manual_seed(99)  # resuming brings every process's random state back
    rest = Draws(group)
    second = loop(group, root / "parts", rest)
    resumed = second.resume()
    second.run()
    failed = None
    try:
        loop(group, root / "failing", Draws(group, fails_at=4)).run()
    except InputError as error:
        failed = str(error)
    return {"whole": whole.drawn, "parts": rest.drawn, "stopped": stopped, "resumed": resumed, "failed": failed}
