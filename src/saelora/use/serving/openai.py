"""OpenAI's endpoints over an engine."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from saelora.errors import InputError
from saelora.use.serving.bodies import ChatBody, CompletionBody, read
from saelora.use.serving.choices import Choice, finished, leave, listener, together
from saelora.use.serving.engine import Engine, check_ask
from saelora.use.serving.form import Form, usage
from saelora.use.serving.http import Door, Limits, Refused, read_json, submit
from saelora.use.serving.rows import Ask

DEFAULT_TOKENS = 64


def openai(engine: Engine, limits: Limits, door: Door) -> APIRouter:
    """Models, completions and chats."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models(request: Request) -> dict[str, Any]:
        door.check(request)
        return {"object": "list", "data": [_model(name) for name in engine.run.variants]}

    @router.get("/models/{name}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        door.check(request)
        if name not in engine.run.variants:
            raise Refused(404, f"model {name[:80]!r} is not served: expected {', '.join(engine.run.variants)}")
        return _model(name)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        door.check(request)
        return await _answer(request, engine, limits, CompletionBody)

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        door.check(request)
        return await _answer(request, engine, limits, ChatBody)

    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "saelora"}


async def _answer(request: Request, engine: Engine, limits: Limits, kind: type[Any]) -> Response:
    body = read(kind, await read_json(request))
    choices = _choices(body, engine, limits)
    submit(engine, [choice.ask for choice in choices])
    form = Form(body, engine)
    if body.stream:
        return StreamingResponse(_streamed(form, choices), media_type="text/event-stream")
    try:
        await finished(request, choices)
    finally:
        leave(choices)
    return JSONResponse(form.whole(choices))


def _choices(body: Any, engine: Engine, limits: Limits) -> list[Choice]:
    deadline = time.monotonic() + limits.timeout
    made = []
    for prompt in body.prompts:
        tell, events = listener()
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
        made.append(Choice(ask, events))
    if not 0 < len(made) <= engine.most_waiting:
        raise InputError(f"{len(made)} prompts: give 1 to {engine.most_waiting}")
    return made


async def _streamed(form: Form, choices: Sequence[Choice]) -> AsyncIterator[str]:
    """Server-sent events; where the client leaves, this is closed, and the generation ends."""
    try:
        for i in range(len(choices)):
            if (first := form.first(i)) is not None:
                yield _sent(first)
        try:
            async for index, event in together(choices):
                yield _sent(form.part(index, event))
            if form.body.with_usage:
                yield _sent({**form.about, "choices": [], "usage": usage(choices)})
        except Refused as error:
            yield _sent(error.told)
        yield "data: [DONE]\n\n"
    finally:
        leave(choices)


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
