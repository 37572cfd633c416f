"""Continuations as a client gets them: what the engine tells of each, waited for or streamed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import Request

from saelora.use.serving.http import POLL, Refused, refusal
from saelora.use.serving.rows import Ask, Ended, Event, Piece


def listener() -> tuple[Callable[[Event], None], "asyncio.Queue[Event]"]:
    """What the engine's thread tells its events to, and the queue that they come out of in this one."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the server has stopped, and nobody listens
            loop.call_soon_threadsafe(events.put_nowait, event)

    return tell, events


@dataclass
class Choice:
    """One continuation as the client gets it: events come in from the engine's thread."""

    ask: Ask
    events: "asyncio.Queue[Event]"
    pieces: list[Piece] = field(default_factory=list)
    ended: Ended | None = None

    async def next(self) -> Event:
        event = await self.events.get()
        if isinstance(event, Piece):
            self.pieces.append(event)
        elif isinstance(event, Ended):
            self.ended = event
            if event.reason == "timeout":
                raise Refused(504, "this took longer than the server's timeout: ask for fewer tokens", "timeout")
            if event.reason == "cancelled":
                raise Refused(503, "the server is stopping", "server_error")
        else:
            raise refusal(event.error)
        return event

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def leave(choices: Sequence[Choice]) -> None:
    for choice in choices:
        if choice.ended is None:
            choice.ask.cancel()


async def finished(request: Request, choices: Sequence[Choice]) -> None:
    """Wait for all; end early where the client has gone."""

    async def wait(choice: Choice) -> None:
        while choice.ended is None:
            await choice.next()

    waiting = asyncio.ensure_future(asyncio.gather(*(wait(choice) for choice in choices)))
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=POLL)
            if not waiting.done() and await request.is_disconnected():
                raise Refused(499, "the client has left")
        await waiting
    finally:
        waiting.cancel()


async def together(choices: Sequence[Choice]) -> AsyncIterator[tuple[int, Event]]:
    """The events of all, each with its choice's place, as they come.

    Raises:
        Refused: one of them failed.
    """
    merged: asyncio.Queue[tuple[int, Event | Refused]] = asyncio.Queue()

    async def forward(index: int, choice: Choice) -> None:
        try:
            while choice.ended is None:
                merged.put_nowait((index, await choice.next()))
        except Refused as error:
            merged.put_nowait((index, error))

    tasks = [asyncio.create_task(forward(i, choice)) for i, choice in enumerate(choices)]
    try:
        left = len(choices)
        while left:
            index, event = await merged.get()
            if isinstance(event, Refused):
                raise event
            left -= isinstance(event, Ended)
            yield index, event
    finally:
        for task in tasks:
            task.cancel()
