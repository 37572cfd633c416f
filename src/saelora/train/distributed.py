"""How the processes of one run find one another, as torchrun or accelerate launch starts them, and part again."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import timedelta

from saelora.core.group import Group
from saelora.errors import InputError

# Long: processes wait while one reads the data, or has more of a sweep to do. One that dies is noticed at once.
TIMEOUT = timedelta(days=7)


def current_group(device: str = "auto") -> Group:
    """The processes that a launcher started (RANK, WORLD_SIZE, LOCAL_RANK), connected on the first call.

    On CUDA each process takes the GPU of its local rank, which "auto" and "cuda" then mean.

    Raises:
        InputError: more processes than GPUs, or one GPU named for all of them.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Group()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        _claim_gpu(device)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(_leave_cleanly)
    return Group(int(os.environ["RANK"]), world)


def first_to_report() -> bool:
    """Whether no other process has asked this before: an error that several meet is to be printed once."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    from torch._C._distributed_c10d import TCPStore  # torch.distributed's, which has it but does not export it

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"saelora/reported/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True  # nobody to ask: twice is better than not at all


def lost_a_peer(error: Exception) -> bool:
    """Whether an error means that another process has ended; that one says why."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def leave(code: int) -> int:
    """End this process's part; with an error at once, since the others wait for it until they see it gone."""
    import torch.distributed as dist

    if code != 0 and dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _leave_cleanly()
    return code


def _leave_cleanly() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _claim_gpu(device: str) -> None:
    import torch

    if device.startswith("cuda:"):
        raise InputError(f"device {device} for {os.environ['WORLD_SIZE']} processes: each takes its own, so give cuda")
    if device == "cpu" or not torch.cuda.is_available():
        return
    local, n_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= n_gpus:
        raise InputError(f"more processes than GPUs: torch sees {n_gpus} here, so use --nproc-per-node {n_gpus}")
    torch.cuda.set_device(local)
