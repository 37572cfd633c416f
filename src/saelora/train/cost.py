"""What a training run costs beside its time: floating-point operations, and memory of a step."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saelora.train.checkpoint import StateDict
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
        self._allocated = _Allocated()

    def step(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """The objective's step."""
        if self.n_steps > _MEASURED_STEP:
            return self.objective.step(rows, progress)
        before = self._start()
        with self._allocated, flop_counter.FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
            out = self.objective.step(rows, progress)
        self.flops_per_token = counter.get_total_flops() / rows.numel()
        self.step_bytes = self._most() - before
        self.n_steps += 1
        return out

    def _start(self) -> int:
        """Bytes that are held now, from where the most of them is counted anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        self._allocated.most = self._allocated.now
        return self._allocated.now

    def _most(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        return self._allocated.most

    def check(self, rows: Tensor) -> None:
        """The objective's check; costs nothing."""
        self.objective.check(rows)

    def state_dict(self) -> StateDict:
        cost = {"n_steps": self.n_steps, "flops_per_token": self.flops_per_token, "step_bytes": self.step_bytes}
        return {"objective": self.objective.state_dict(), "cost": cost}

    def load_state_dict(self, state: StateDict) -> None:
        self.objective.load_state_dict(state["objective"])
        for name, value in state["cost"].items():
            setattr(self, name, value)


class _Allocated(TorchDispatchMode):
    """Bytes of the tensors that operations inside have made and that are still alive, and the most of them ever.

    A kernel's own scratch memory is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(storage): storage for storage in _storages((args, kwargs))}  # held, so that no id is used again
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._alive:  # neither a view nor written in place
                self._note(storage)
        return out

    def _note(self, storage: UntypedStorage) -> None:
        key, n_bytes = id(storage), storage.nbytes()

        def freed(_: Any) -> None:
            self.now -= n_bytes
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)
        self.now += n_bytes
        self.most = max(self.most, self.now)


def _storages(tree: Any) -> list[UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)
    return [tensor.untyped_storage() for tensor in tensors]
