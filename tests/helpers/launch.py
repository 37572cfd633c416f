"""Real processes, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def launched(*words: str, processes: int = 2) -> Iterator[subprocess.Popen[str]]:
    """``torchrun --nproc-per-node N WORDS``; it does not outlive the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [sys.executable, *launcher, *words]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()  # the launcher ends its processes; killed, it would leave them behind
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def finished(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the launcher."""
    with launched(*words) as process:
        out, err = process.communicate(timeout=500)
        return process.returncode, out, err
