"""How much memory is free, and how much a student's backward pass will hold."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken, torch's own cache included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            found = {line.split(":")[0]: line.split()[1] for line in file}
        return int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def saved_bytes(run: Callable[[], Any], weights: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass for its backward pass, each storage once and the weights left out."""
    sizes: dict[int, int] = {}
    there = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage() if tensor.layout == torch.strided else None
        if storage is not None and storage.data_ptr() not in there:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # held until the sizes are summed, so that no address is used twice
    total = sum(sizes.values())
    del kept
    return total
