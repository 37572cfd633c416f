"""Commands in processes of their own, forked from one that has imported what takes seconds."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SERVER = """
import json, os, sys
import matplotlib.pyplot, peft, sae_lens, scipy.stats, torch, transformers.models.llama.modeling_llama
import saelora, saelora.cli, saelora.jobs.adapt, saelora.jobs.train_sae
words = None
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        pid, status = os.waitpid(asked["wait"], 0 if asked["long"] else os.WNOHANG)
        told = os.waitstatus_to_exitcode(status) if pid else None
    elif not (told := os.fork()):
        words = asked["words"]
        break
    print(json.dumps(told), flush=True)
if words is not None:
    os.setsid()
    for number, path in ((0, os.devnull), (1, os.devnull), (2, asked["said"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.exit(saelora.cli.main(words))
"""


class Run:
    """A command at work."""

    def __init__(self, forks: "Forks", pid: int, said: Path):
        self.forks, self.pid, self.said = forks, pid, said
        self.returncode: int | None = None

    def poll(self, long: bool = False) -> int | None:
        """Its exit code (less than 0: a signal's number), None while it runs."""
        if self.returncode is None:
            self.returncode = self.forks.ask(wait=self.pid, long=long)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def finish(self) -> str:
        """Wait for its end; what it said on stderr."""
        self.poll(long=True)
        return self.said.read_text()


class Forks:
    """The process that commands are forked from, with as many threads as this one."""

    def __init__(self, scratch: Path):
        env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
        self.scratch, self.n = scratch, 0
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, text=True, env=env)

    def ask(self, **question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    @contextmanager
    def started(self, *words: str) -> Iterator[Run]:
        """``saelora WORDS``; it does not outlive the context."""
        self.n += 1
        said = self.scratch / str(self.n)
        run = Run(self, self.ask(words=words, said=str(said)), said)
        try:
            yield run
        finally:
            run.send_signal(signal.SIGKILL)
            run.finish()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
