"""Between two logged steps nothing waits for the device: what waits would stall a GPU, and cannot be recorded."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import families
from method_steps import METHODS, batches, objective

READ = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")
# the first two are not called where the model is on a GPU, transformers leaves the last out while a graph is recorded
ON_A_CPU = ("_check_finite", "find_packed_sequence_indices", "warn_if_padding_and_no_attention_mask")


class Waits(TorchDispatchMode):
    """Notes operations whose result a host has to see, or whose shape hangs on their values, and who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        if name in READ or by_mask:
            callers = [frame.name for frame in traceback.extract_stack()]
            if not any(caller in ON_A_CPU for caller in callers):
                self.seen.append(f"{name} of {' < '.join(reversed(callers[-6:-1]))}")
        return func(*args, **(kwargs or {}))


def waits(one: Any) -> list[str]:
    one.step(batches()[0], 0.0)
    with Waits() as found:
        one.step(batches()[1], 0.25)
    return found.seen


@pytest.mark.parametrize("family", families.NAMES)
def test_no_family_waits(family: str) -> None:
    with objective([METHODS["lora"]], family=family) as one:
        assert not waits(one)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits(method: str) -> None:
    with objective([METHODS[method], METHODS["lora"]]) as one:
        assert not waits(one)


def test_what_waits_is_seen() -> None:
    with Waits() as found:
        values = torch.arange(3)
        float(values[0]), values[values > 1], values.nonzero()
    assert len(found.seen) == 3
