"""The HTTP side: OpenAI's endpoints over an engine."""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from saelora.errors import InputError, on_one_line
from saelora.use.serving.bodies import Body, ChatBody, CompletionBody, read
from saelora.use.serving.engine import Busy, Engine, check_ask
from saelora.use.serving.rows import Ask, Ended, Event, Failed, Piece

MOST_BYTES = 2_000_000  # of a request
DEFAULT_TOKENS = 64
_POLL = 0.1  # seconds between looks at whether a client is still there


@dataclass(frozen=True)
class Limits:
    """``most_tokens`` of a prompt and its answer, ``timeout`` in seconds from the request's arrival."""

    most_tokens: int = 1024
    timeout: float = 120.0


class Refused(Exception):
    """What a client is told, and the HTTP status."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status, self.kind = status, kind


def application(
    engine: Engine, limits: Limits, *, token: str | None = None, hosts: Sequence[str] = ("127.0.0.1", "localhost")
) -> FastAPI:
    """The server's application.

    Args:
        token: what clients have to send as their API key; None lets everybody in.
        hosts: names that a request may call this server by: a page of the web that resolves to it cannot.
    """
    app = FastAPI(title="saelora", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        told = {"message": str(error), "type": error.kind, "param": None, "code": None}
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse({"error": told}, error.status, headers)

    def let_in(request: Request) -> None:
        sent = request.headers.get("authorization", "")
        if token is not None and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            raise Refused(401, "give this server's token as the API key", "authentication_error")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": engine.n_waiting}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        let_in(request)
        return {"object": "list", "data": [_model(name) for name in engine.run.variants]}

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        let_in(request)
        if name not in engine.run.variants:
            raise Refused(404, f"model {name[:80]!r} is not served: expected {', '.join(engine.run.variants)}")
        return _model(name)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        let_in(request)
        return await _answer(request, engine, limits, CompletionBody)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        let_in(request)
        return await _answer(request, engine, limits, ChatBody)

    return app


def stopping_first(engine: Engine) -> type[uvicorn.Server]:
    """A server that at a signal ends what is generated, tells its clients, and then itself."""

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            engine.begin_stop()
            super().handle_exit(sig, frame)

    return Server


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "saelora"}


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON (Content-Type: application/json)")
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise Refused(413, f"a request may have {MOST_BYTES:,} bytes")
    return found


@dataclass
class _Choice:
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
            known = isinstance(event.error, InputError)
            raise Refused(400 if known else 500, on_one_line(event.error), "server_error")
        return event

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


async def _answer(request: Request, engine: Engine, limits: Limits, kind: type[Any]) -> Response:
    text = await _body(request)
    try:
        body = read(kind, text)
        choices = _choices(body, engine, limits)
    except InputError as error:
        raise Refused(400, str(error)) from None
    try:
        engine.submit([choice.ask for choice in choices])
    except Busy:
        raise Refused(429, f"{engine.n_waiting} requests wait already: try again soon", "rate_limit_error") from None
    form = _Form(body, engine)
    if body.stream:
        return StreamingResponse(_streamed(form, choices), media_type="text/event-stream")
    try:
        await _finished(request, choices)
    finally:
        _leave(choices)
    return JSONResponse(form.whole(choices))


def _choices(body: Any, engine: Engine, limits: Limits) -> list[_Choice]:
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + limits.timeout
    made = []
    for prompt in body.prompts:
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event, events: "asyncio.Queue[Event]" = events) -> None:
            with suppress(RuntimeError):  # the server has stopped, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        ids = engine.ids(prompt)
        room = limits.most_tokens - len(ids)
        ask = Ask(
            ids=ids,
            variant=body.model,
            longest=body.longest or max(1, min(DEFAULT_TOKENS, room)),
            tell=tell,
            deadline=deadline,
            steer=body.steer,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stops=body.stops,
            alternatives=body.alternatives,
            latents=body.latents,
        )
        check_ask(engine.run, ask, limits.most_tokens)
        made.append(_Choice(ask, events))
    if not 0 < len(made) <= engine.most_waiting:
        raise InputError(f"{len(made)} prompts: give 1 to {engine.most_waiting}")
    return made


def _leave(choices: Sequence[_Choice]) -> None:
    for choice in choices:
        if choice.ended is None:
            choice.ask.cancelled.set()


async def _finished(request: Request, choices: Sequence[_Choice]) -> None:
    """Wait for all; end early where the client has gone."""

    async def wait(choice: _Choice) -> None:
        while choice.ended is None:
            await choice.next()

    waiting = asyncio.ensure_future(asyncio.gather(*(wait(choice) for choice in choices)))
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=_POLL)
            if not waiting.done() and await request.is_disconnected():
                raise Refused(499, "the client has left")
        await waiting
    finally:
        waiting.cancel()


async def _streamed(form: "_Form", choices: Sequence[_Choice]) -> AsyncIterator[str]:
    """Server-sent events; where the client leaves, this is closed, and the generation ends."""
    merged: asyncio.Queue[tuple[int, Event | Refused]] = asyncio.Queue()

    async def forward(index: int, choice: _Choice) -> None:
        try:
            while choice.ended is None:
                merged.put_nowait((index, await choice.next()))
        except Refused as error:
            merged.put_nowait((index, error))

    tasks = [asyncio.create_task(forward(i, choice)) for i, choice in enumerate(choices)]
    try:
        for i in range(len(choices)):
            if (first := form.first(i)) is not None:
                yield _sent(first)
        left = len(choices)
        while left:
            index, event = await merged.get()
            if isinstance(event, Refused):
                yield _sent({"error": {"message": str(event), "type": event.kind, "param": None, "code": None}})
                break
            left -= isinstance(event, Ended)
            yield _sent(form.part(index, event))
        else:
            if form.body.with_usage:
                yield _sent({**form.about, "choices": [], "usage": usage(choices)})
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        _leave(choices)


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def usage(choices: Sequence[_Choice]) -> dict[str, int]:
    prompt = sum(len(choice.ask.ids) for choice in choices)
    made = sum(choice.ended.n_tokens for choice in choices if choice.ended is not None)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class _Form:
    """An answer in the shape of its endpoint, whole or in parts."""

    def __init__(self, body: Body, engine: Engine):
        self.body, self.text_of = body, engine.token
        self.chat = isinstance(body, ChatBody)
        name = ("chat.completion" if self.chat else "text_completion") + (".chunk" if self.chat and body.stream else "")
        number = uuid.uuid4().hex[:24]
        self.about = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{number}",
            "object": name,
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, choices: Sequence[_Choice]) -> dict[str, Any]:
        made = []
        for index, choice in enumerate(choices):
            assert choice.ended is not None
            likely = [each for piece in choice.pieces for each in piece.likely]
            made.append(self._choice(index, choice.text, likely, choice.ended, message=True))
        return {**self.about, "choices": made, "usage": usage(choices)}

    def first(self, index: int) -> dict[str, Any] | None:
        if not self.chat:
            return None
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self.about, "choices": [choice]}

    def part(self, index: int, event: Event) -> dict[str, Any]:
        assert not isinstance(event, Failed)
        if isinstance(event, Ended):
            return {**self.about, "choices": [self._choice(index, "", [], event)]}
        return {**self.about, "choices": [self._choice(index, event.text, list(event.likely), None)]}

    def _choice(
        self, index: int, text: str, likely: list[Any], ended: Ended | None, message: bool = False
    ) -> dict[str, Any]:
        content: dict[str, Any]
        if not self.chat:
            content = {"text": text}
        elif message:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            content = {"delta": {"content": text} if text else {}}
        logprobs = self._logprobs(likely) if likely else None
        found: dict[str, Any] = {"index": index, **content, "logprobs": logprobs, "finish_reason": None}
        if ended is not None:
            found["finish_reason"] = ended.reason
            if ended.latents is not None:
                found["latents"] = ended.latents
        return found

    def _logprobs(self, likely: list[Any]) -> dict[str, Any]:
        if self.chat:
            return {
                "content": [
                    {**self._token(own), "top_logprobs": list(map(self._token, others))} for own, others in likely
                ]
            }
        return {
            "tokens": [self.text_of(own.token_id) for own, _ in likely],
            "token_logprobs": [own.logprob for own, _ in likely],
            "top_logprobs": [self._by_name(others) for _, others in likely],
            "text_offset": None,
        }

    def _by_name(self, others: Any) -> dict[str, float]:
        """By their text; of several with one text, as halves of characters have, the likeliest."""
        found: dict[str, float] = {}
        for other in others:
            found.setdefault(self.text_of(other.token_id), other.logprob)
        return found

    def _token(self, likely: Any) -> dict[str, Any]:
        text = self.text_of(likely.token_id)
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else a part of a character, whose bytes are not told
        return {"token": text, "logprob": likely.logprob, "bytes": list(text.encode()) if whole else None}
