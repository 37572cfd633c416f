"""A training step as one CUDA graph: recorded once, replayed on new rows. No Python runs between its kernels.

A small model's step is thousands of launches, each of which takes the host longer than the kernel takes the GPU;
replayed, they are one. The kernels, their order and their random numbers are those of the step as it is, and so are
its bits.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelora.errors import InputError, first_line

Graph = Literal["auto", "on", "off"]
Step = Callable[[Int[Tensor, "n_rows context"]], dict[str, Float[Tensor, ""]]]
WARM_UP = 2  # steps before the recording: what is built or compiled when it first runs, is by then


class StepGraph:
    """Calls a step, or replays its graph: recorded when rows of one shape come for the third time.

    Rows of another shape (the last of a run) go through the step as it is.

    Args:
        step: rows on the device -> metrics. All that it changes between two calls it changes in place, on the device.
        wanted: "auto" records where that can be, and says why where it can't; "on" makes that an error.
        why_not: what forbids it, in words.
        say: for the line that says why.

    Raises:
        InputError: the graph is wanted, and cannot be.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        wanted: Graph = "auto",
        *,
        why_not: str | None = None,
        say: Callable[[str], None] = warnings.warn,
    ):
        self._step, self._device, self._wanted, self._say = step, device, wanted, say
        obstacle = "the model is not on an NVIDIA GPU" if device.type != "cuda" or torch.version.hip else why_not
        if wanted == "on" and obstacle is not None:
            raise InputError(f"a step cannot be made a CUDA graph: {obstacle}; use --graph auto")
        self._off = wanted == "off" or obstacle is not None
        self.forget()

    def forget(self) -> None:
        """Give the recording back: what it recorded is no longer what a step is."""
        self._seen: Counter[torch.Size] = Counter()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows: Tensor | None = None
        self._metrics: dict[str, Tensor] = {}

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed by now."""
        return self._graph is not None

    def __call__(self, rows: Int[Tensor, "n_rows context"]) -> dict[str, Float[Tensor, ""]]:
        """One step. The metrics of a replayed one are overwritten by the next."""
        if self._off:
            return self._step(rows)
        if self._graph is None and self._seen[rows.shape] >= WARM_UP:
            self._record(rows)
        if self._graph is None or self._rows is None or rows.shape != self._rows.shape:
            self._seen[rows.shape] += 1
            return self._aside(rows)
        self._rows.copy_(rows, non_blocking=True)
        self._graph.replay()
        return self._metrics

    def _aside(self, rows: Tensor) -> dict[str, Tensor]:
        """The step as it is, on the stream that records: libraries keep a workspace for each stream."""
        if self._off:
            return self._step(rows)
        here, aside = torch.cuda.current_stream(self._device), self._stream
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            found = self._step(rows.to(self._device, non_blocking=True))
        here.wait_stream(aside)
        return found

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)

    def _record(self, rows: Tensor) -> None:
        """Record a step on rows of this shape, which runs nothing; or take leave of the idea."""
        why = self._too_large()
        if why is None:
            self._rows, graph = torch.empty_like(rows, device=self._device), torch.cuda.CUDAGraph()
            try:
                with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
                    self._metrics = self._step(self._rows)
                self._graph = graph
                return
            except Exception as error:  # a library's step may do what cannot be recorded, in ways not for us to list
                why = f"{type(error).__name__}: {first_line(error)}"
                torch.cuda.synchronize(self._device)
        self.forget()
        self._off = True
        said = f"the training step cannot be made a CUDA graph, so each of its kernels is launched by itself ({why})"
        if self._wanted == "on":
            raise InputError(f"{said}: use --graph auto")
        self._say(said)

    def _too_large(self) -> str | None:
        """Why its memory is too much: a graph keeps all that a step takes, beside which evaluations want theirs."""
        taken = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        if free >= taken:
            return None
        return f"a step takes about {taken / 1e9:.1f} GB, which a graph would keep, and {free / 1e9:.1f} GB are left"
