"""What a training run costs beside its time: floating-point operations, and memory of a step."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

from saelora.train.loop import Objective

_aten = torch.ops.aten
# what torch's counter leaves out: products added in place, and attention's kernel for CPUs
_MORE: dict[Any, Callable[..., int]] = {
    _aten.addmm_: lambda _out, a, b, **_: flop_counter.mm_flop(a, b),
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q, k, v),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(grad, q, k, v)
    ),
}
_MEASURED_STEP = 1  # the second: the first also makes optimiser state and starts SAEs on their first tokens


class Costed:
    """An objective as it was, whose second step (a run's only one, where there is but one) is measured.

    Operations are those of matrix products, attention and convolutions as torch counts them: a multiply-add is two,
    what is computed twice counts twice, attention counts all pairs, products with sparse matrices count as dense ones.
    """

    def __init__(self, objective: Objective, device: torch.device):
        self.objective, self.device = objective, device
        self.n_steps = 0
        self.flops_per_token = 0.0
        self.step_bytes = 0  # most memory held during a step beyond what was held before it

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """The objective's step."""
        if self.n_steps > _MEASURED_STEP:
            return self.objective.step(rows, progress)
        with flop_counter.FlopCounterMode(display=False, custom_mapping=_MORE) as counter, _peak(self.device) as peak:
            out = self.objective.step(rows, progress)
        self.flops_per_token = counter.get_total_flops() / rows.numel()
        self.step_bytes = peak()
        self.n_steps += 1
        return out

    def state_dict(self) -> dict[str, Any]:
        cost = {"n_steps": self.n_steps, "flops_per_token": self.flops_per_token, "step_bytes": self.step_bytes}
        return {"objective": self.objective.state_dict(), "cost": cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        for name, value in state["cost"].items():
            setattr(self, name, value)


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields what tells, once the context is left, how far memory rose above where it stood; 0 where nobody knows.

    On a CPU this is the process's resident set (Linux).
    """
    found = 0
    gc.collect()  # what was garbage before would make room for the step unseen
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    elif sys.platform.startswith("linux"):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmRSS")
    yield lambda: found
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        found = torch.cuda.max_memory_allocated(device) - before
    elif sys.platform.startswith("linux"):
        found = max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
