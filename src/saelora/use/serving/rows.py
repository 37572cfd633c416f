"""One continuation that was asked for, while it is made: its tokens, its text piece by piece, when it ends."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Reason = Literal["stop", "length", "timeout", "cancelled"]


@dataclass(frozen=True)
class Likely:
    """A token and the logarithm of its probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class Piece:
    """New text, and the tokens since the last one; ``likely`` is empty where nobody asked."""

    text: str
    token_ids: tuple[int, ...]
    likely: tuple[tuple[Likely, tuple[Likely, ...]], ...] = ()  # of each token: itself, the likeliest


@dataclass(frozen=True)
class Ended:
    reason: Reason
    n_tokens: int
    latents: Any = None


@dataclass(frozen=True)
class Failed:
    error: Exception


Event = Piece | Ended | Failed


@dataclass(frozen=True)
class Ask:
    """What one continuation is asked to be.

    Args:
        ids: the prompt.
        alternatives: how many other tokens' log probabilities to tell beside each token's own; None: not even that.
        seed: of its own samples; None draws one.
        tell: is called with each event, from the thread that generates.
        deadline: of ``time.monotonic``.
    """

    ids: tuple[int, ...]
    variant: str
    longest: int
    tell: Callable[[Event], None]
    deadline: float
    steer: Mapping[str, str | float] = field(default_factory=dict)
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    alternatives: int | None = None
    latents: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Asks of one kind can be one batch."""
        return self.variant, tuple(sorted((str(k), str(v)) for k, v in self.steer.items()))

    def cancel(self) -> None:
        """End it at its next token."""
        self.cancelled.set()


class Row:
    """An ask's row of a batch."""

    def __init__(self, ask: Ask, decode: Callable[[list[int]], str], ends: frozenset[int]):
        self.ask, self.decode, self.ends = ask, decode, ends
        self.new: list[int] = []
        self.reason: Reason | None = None
        self._told = 0  # characters
        self._pending: list[tuple[int, tuple[Likely, tuple[Likely, ...]] | None]] = []
        self._likely: tuple[Likely, tuple[Likely, ...]] | None = None
        self._held = max(map(len, ask.stops), default=1) - 1
        self._draws = torch.Generator()
        if ask.seed is None:
            self._draws.seed()
        else:
            self._draws.manual_seed(ask.seed)

    def choose(self, logits: Float[Tensor, " vocab"], own: Float[Tensor, " vocab"] | None) -> int:
        """The next token, by this row's own temperature, top_p and seed.

        Args:
            own: the model's own logits, before what its generation configuration does to them.
        """
        logits = logits.float()
        chosen = int(self._sampled(logits) if self.ask.temperature else logits.argmax())
        if self.ask.alternatives is not None:
            assert own is not None
            logprobs = own.float().log_softmax(-1)
            best = logprobs.topk(self.ask.alternatives) if self.ask.alternatives else None
            others = () if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
            self._likely = Likely(chosen, float(logprobs[chosen])), tuple(Likely(i, value) for i, value in others)
        return chosen

    def _sampled(self, logits: Tensor) -> Tensor:
        probs = ((logits - logits.max()) / self.ask.temperature).softmax(-1).cpu()
        if self.ask.top_p < 1:
            ordered, index = probs.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.ask.top_p] = 0  # the first always stays
            probs = torch.zeros_like(probs).scatter(-1, index, ordered)
        return torch.multinomial(probs, 1, generator=self._draws)

    def take(self, token: int) -> bool:
        """Add a token that was generated; whether the row has ended."""
        if self.reason is not None:
            return True
        self.new.append(token)
        self._pending.append((token, self._likely))
        if token in self.ends:
            self.reason = "stop"
        elif len(self.new) >= self.ask.longest:
            self.reason = "length"
        elif self.ask.cancelled.is_set():
            self.reason = "cancelled"
        elif time.monotonic() > self.ask.deadline:
            self.reason = "timeout"
        self._tell()
        return self.reason is not None

    def _tell(self) -> None:
        text = self.decode(self.new)
        cut = min((at for stop in self.ask.stops if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            text, self.reason = text[:cut], "stop"
        elif self.reason is None:  # what may yet become a stop, or is half a character, waits
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                return
            text = text[: max(self._told, len(text) - self._held)]
        piece = text[self._told :]
        if piece or self.reason is not None:
            self._told = max(self._told, len(text))
            likely = tuple(each for _, each in self._pending if each is not None)
            self.ask.tell(Piece(piece, tuple(token for token, _ in self._pending), likely))
            self._pending.clear()
