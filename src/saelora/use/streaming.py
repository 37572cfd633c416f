"""Text as it is generated: the generation runs in a thread of its own, which ends when nobody reads any more."""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer


class Stopped(StoppingCriteria):
    """Ends a generation at its next token once ``now`` is set."""

    def __init__(self) -> None:
        self.now = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.now.is_set(), device=input_ids.device, dtype=torch.bool)


class Stream(Iterator[str]):
    """Pieces of text as they are made. Closing it, or letting go of it, ends the generation."""

    def __init__(self, pieces: Generator[str]):
        self._pieces = pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    def __del__(self) -> None:
        self._pieces.close()


def streamed(tokenizer: Any, run: Callable[[Any, Stopped], None]) -> Generator[str]:
    """The pieces of text that ``run`` hands to its streamer, as they come; what it raises is raised here."""
    streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stopped, failed = Stopped(), []

    def work() -> None:
        try:
            run(streamer, stopped)
        except BaseException as error:
            failed.append(error)
            streamer.on_finalized_text("", stream_end=True)

    thread = threading.Thread(target=work, name="saelora-stream", daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stopped.now.set()
        thread.join()
    if failed:
        raise failed[0]
