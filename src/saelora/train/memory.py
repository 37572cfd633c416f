"""How much memory is free, and how much a student's backward pass will hold."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from saelora.errors import InputError

LIMIT = "SAELORA_MEMORY"  # environment: what this process may hold in all, as 8G or 500M; for shared machines
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken, torch's own cache included: the least that any limit leaves.

    On a CPU that is the machine's, its control group's (containers, batch systems), the process's own limits (ulimit
    -v), or $SAELORA_MEMORY's.

    Raises:
        InputError: $SAELORA_MEMORY is no amount of memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min(_machine(), *_control_groups(), *_own_limits()))


def _machine() -> int:
    try:
        return _kilobytes("/proc/meminfo")["MemAvailable"]
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _kilobytes(path: str) -> dict[str, int]:
    """Bytes by name of a file of /proc with lines as "Name:  12 kB"."""
    lines = [line.replace(":", " ").split() for line in Path(path).read_text().splitlines()]
    return {words[0]: int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


def _control_groups() -> Iterator[int]:
    """What the limits of this process's control groups, and of those that they are in, leave; versions 1 and 2."""
    with suppress(OSError, ValueError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds not in ("", "memory") and "memory" not in kinds.split(","):
                continue
            root = _CGROUPS if kinds == "" else _CGROUPS / "memory"
            limit, used = ("max", "current") if kinds == "" else ("limit_in_bytes", "usage_in_bytes")
            place = root / name.lstrip("/")
            for folder in (place, *place.parents):
                with suppress(OSError, ValueError, KeyError):  # "max", or no such file: no limit here
                    stat = dict(each.split() for each in (folder / "memory.stat").read_text().splitlines())
                    cached = int(stat.get("total_inactive_file", stat["inactive_file"]))  # given back when asked for
                    most = int((folder / f"memory.{limit}").read_text())
                    yield most - int((folder / f"memory.{used}").read_text()) + cached
                if folder == root:
                    break


def _own_limits() -> Iterator[int]:
    """What the limits on this very process leave."""
    with suppress(OSError, ImportError, KeyError):
        import resource

        status = _kilobytes("/proc/self/status")
        for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY:
                yield soft - status[name]
    asked = os.environ.get(LIMIT)
    if asked:
        with suppress(OSError, KeyError):
            yield _amount(asked) - _kilobytes("/proc/self/status")["VmRSS"]


def _amount(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        found = int(float(text[:-1] if unit > 1 else text) * unit)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise InputError(f"${LIMIT} is {text!r}, expected an amount of memory such as 8G or 500M")
    return found


def saved_bytes(run: Callable[[], Any], weights: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass for its backward pass, each storage once and the weights left out.

    Of a sharded model's weights the own share is left out, and what a layer gathered is given back before this is
    summed; what it holds at once while it runs is not counted.
    """
    saved: dict[int, torch.UntypedStorage] = {}
    there = {_address(weight) for weight in weights}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and _address(tensor) not in there:
            saved[_address(tensor)] = _own(tensor).untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # held until the sizes are summed, so that no address is used twice
    total = sum(storage.nbytes() for storage in saved.values())
    del kept
    return total


def _address(tensor: Tensor) -> int:
    return int(_own(tensor).untyped_storage()._cdata)


def _own(tensor: Tensor) -> Tensor:
    """A sharded tensor's part that is here, else the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
