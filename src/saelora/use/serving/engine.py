"""The one thread that runs the model: it takes asks that wait, and generates those of one kind as one batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from saelora.console import Console
from saelora.errors import InputError, on_one_line
from saelora.use.run import LoadedRun
from saelora.use.serving.calls import Call
from saelora.use.serving.rows import Ask, Ended, Failed, Row

GATHER = 0.01  # seconds after an ask in which another may come to join it
# clients that were answered together ask anew together, one after the other: they are waited for so long
PATIENCE, SHARE = 0.25, 0.1  # seconds, and the share of what their last batch took


class Busy(Exception):
    """As many asks wait as may."""


class Engine:
    """Runs asks on a loaded run, which is its own from then on.

    Args:
        most_rows: asks in one batch.
        most_waiting: asks that may wait; ``submit`` raises ``Busy`` beyond.
    """

    def __init__(self, run: LoadedRun, *, most_rows: int = 8, most_waiting: int = 64):
        self.run, self.most_rows, self.most_waiting = run, most_rows, most_waiting
        self._waiting: deque[Ask | Call] = deque()
        self._idle: deque[Iterator[None]] = deque()
        self._changed = threading.Condition()
        self._tokenizing = threading.Lock()  # tokenizers of transformers are no place for two threads
        self._stopping = False
        self._came = 0.0  # when the last ask did
        self._expected, self._patience = 0, 0.0  # how many may wait soon, and for how long to believe it
        generation = getattr(run.model, "generation_config", None)
        ends: Any = getattr(generation, "eos_token_id", None) or []
        ends = [ends] if isinstance(ends, int) else list(ends)
        self._ends = frozenset(end for end in (*ends, run.tokenizer.eos_token_id) if end is not None)
        self._eos = sorted(self._ends) or None
        self._thread = threading.Thread(target=self._work, name="saelora-engine", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, asks: Sequence[Ask] | Sequence[Call]) -> None:
        """Let asks wait for their turn; all of them or none.

        Raises:
            Busy: too many wait.
        """
        with self._changed:
            if self._stopping or len(self._waiting) + len(asks) > self.most_waiting:
                raise Busy
            self._waiting.extend(asks)
            self._came = time.monotonic()
            self._changed.notify()

    def when_idle(self, steps: Iterator[None]) -> None:
        """Take these steps, one at a time, whenever nothing else waits; each leaves the run as it found it."""
        with self._changed:
            self._idle.append(steps)
            self._changed.notify()

    def begin_stop(self) -> None:
        """Let what runs end at its next token, and what waits be told that it was cancelled; from any thread."""
        self._stopping = True
        for ask in list(self._waiting):
            ask.cancel()

    def stop(self) -> None:
        """The same, and wait for it."""
        self.begin_stop()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            turn()

    def _answer(self, batch: list[Ask]) -> None:
        try:
            self._generate(batch)
        except Exception as error:  # of this batch alone; the next may go well
            for ask in batch:
                ask.tell(Failed(error))

    def _step(self) -> None:
        try:
            next(self._idle[0])
        except StopIteration:
            self._idle.popleft()
        except Exception as error:  # of these steps alone; asks are answered all the same
            self._idle.popleft()
            Console().say(f"what was done between answers has ended early: {on_one_line(error)}")

    def _next(self) -> Callable[[], None] | None:
        """What is to be done now: a call, or the first ask that waits and all of its kind, in order, or a step of what
        may wait; None when stopping and nobody is left."""
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return None
                if self._idle:
                    return self._step
                self._changed.wait()
            if isinstance(first := self._waiting[0], Call):
                self._waiting.popleft()
                return partial(first.run, self.run, time.monotonic())
            self._gather()
            kind = first.kind
            batch = self._fitting([ask for ask in self._waiting if isinstance(ask, Ask) and ask.kind == kind])
            taken = set(map(id, batch))
            self._waiting = deque(ask for ask in self._waiting if id(ask) not in taken)
            return partial(self._answer, batch)

    def _gather(self) -> None:
        """Wait for asks to join those that wait, while more come, or are likely to, and a batch has room for them."""
        began = time.monotonic()
        while (n := len(self._waiting)) < self.most_rows and not self._stopping:
            until = max(self._came + GATHER, began + self._patience * (n < self._expected))
            if (left := until - time.monotonic()) <= 0:
                return
            self._changed.wait(left)

    def _fitting(self, asks: list[Ask]) -> list[Ask]:
        """The first, and those after it that fit into one batch: the longest prompt and answer within the positions."""
        batch: list[Ask] = []
        most = self.run.positions
        for ask in asks:
            longer = [*batch, ask]
            long = max(len(each.ids) for each in longer) + max(each.longest for each in longer)
            if len(batch) < self.most_rows and (not batch or most is None or long <= most):
                batch = longer
        return batch

    def _generate(self, batch: list[Ask]) -> None:
        live = []
        for ask in batch:
            late = time.monotonic() > ask.deadline
            if late or self._stopping or ask.cancelled.is_set():
                ask.tell(Ended("timeout" if late else "cancelled", 0))
            else:
                live.append(ask)
        if not live:
            return
        began = time.monotonic()
        rows = [Row(ask, self.decode, self._ends) for ask in live]
        chosen = _Chosen(rows)
        with ExitStack() as stack:
            if any(ask.alternatives is not None for ask in live):
                stack.enter_context(self._watched(chosen))
            stack.enter_context(self.run.as_variant(live[0].variant))
            if live[0].steer:
                stack.enter_context(self.run.steer(live[0].steer))
            self.run.generate(
                [list(ask.ids) for ask in live],
                max_new_tokens=max(ask.longest for ask in live),
                do_sample=False,
                eos_token_id=self._eos,
                logits_processor=[chosen],
                stopping_criteria=[_Watched(rows, self)],
            )
            self._expected = len(self._waiting) + len(live)  # before anybody knows that it has ended
            self._patience = min(PATIENCE, SHARE * (time.monotonic() - began))
            for row in rows:
                found = self._latents(row) if row.ask.latents else None
                assert row.reason is not None
                row.ask.tell(Ended(row.reason, len(row.new), found))

    @contextmanager
    def _watched(self, chosen: "_Chosen") -> Iterator[None]:
        """The model's own logits, told before transformers' processors act on them."""

        def tell(_model: Any, _args: Any, output: Any) -> None:
            chosen.own = output.logits[:, -1]

        model: Any = self.run.model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        handle = inner.register_forward_hook(tell)
        try:
            yield
        finally:
            handle.remove()

    def _latents(self, row: Row) -> list[dict[str, Any]]:
        seen = self.run.latents([*row.ask.ids, *row.new])
        return [
            {
                "hookpoint": str(hookpoint),
                "tokens": [
                    {
                        "token": each.token,
                        "replaced": each.replaced,
                        "active": [[f.latent, f.activation] for f in each.active[: row.ask.latents]],
                    }
                    for each in seen.at(hookpoint)
                ],
            }
            for hookpoint in seen.hookpoints
        ]

    def ids(self, prompt: Any) -> tuple[int, ...]:
        """A prompt's token ids, from any thread.

        Raises:
            InputError: an empty prompt, or no chat template.
        """
        with self._tokenizing:
            return tuple(self.run.ids(prompt))

    def token(self, token_id: int) -> str:
        """One token's own text, from any thread."""
        with self._tokenizing:
            return str(self.run.tokenizer.decode([token_id]))

    def decode(self, ids: list[int]) -> str:
        """Their text, special tokens left out, from any thread."""
        with self._tokenizing:
            return str(self.run.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def stopping(self) -> bool:
        return self._stopping


class _Chosen(LogitsProcessor):
    """Every row's next token by its own rule: all others become impossible."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows
        self.own: Tensor | None = None  # logits of this pass, where somebody asks for their probabilities

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own = [None] * len(self.rows) if self.own is None else list(self.own)
        chosen = [0 if row.reason else row.choose(scores[i], own[i]) for i, row in enumerate(self.rows)]
        index = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(-1, index, 0.0)


class _Watched(StoppingCriteria):
    """Hands each row its new token; a row ends by itself, or because nobody waits for it any more."""

    def __init__(self, rows: Sequence[Row], engine: Engine):
        self.rows, self.engine = rows, engine

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        if self.engine.stopping:
            for row in self.rows:
                row.ask.cancelled.set()
        done = [row.take(token) for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True)]
        return torch.tensor(done, device=input_ids.device)


def check_ask(run: LoadedRun, ask: Ask, most_tokens: int) -> None:
    """Raise InputError where an ask could only fail later: no such variant or latent, or too long."""
    from saelora.use.steering import resolve

    if ask.variant not in run.variants:
        raise InputError(f"model {ask.variant[:80]!r} is not served: expected one of {', '.join(run.variants)}")
    positions = run.positions
    if len(ask.ids) + ask.longest > most_tokens:
        raise InputError(
            f"{len(ask.ids)} tokens of prompt and {ask.longest} to generate are more than the {most_tokens} that this "
            "server takes: ask for less, or start it with a higher --max-tokens"
        )
    if positions is not None and len(ask.ids) + ask.longest > positions:
        raise InputError(
            f"{len(ask.ids)} tokens of prompt and {ask.longest} to generate are more than the model's {positions}: "
            "ask for less"
        )
    if ask.steer:
        resolve(ask.steer, run.sizes)
