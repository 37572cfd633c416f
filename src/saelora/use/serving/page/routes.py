"""The page at / and what it asks this server for."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from saelora.use.serving.bodies import read
from saelora.use.serving.engine import Engine
from saelora.use.serving.http import Door, Limits, on_engine, read_json, submit
from saelora.use.serving.page import files, views
from saelora.use.serving.page.bodies import AblateBody, ContinueBody, TokenBody
from saelora.use.serving.page.browsing import browsing
from saelora.use.serving.page.continuing import choices_of, lines
from saelora.use.token_view import ablate


def page(engine: Engine, limits: Limits, door: Door, n_tokens: int) -> APIRouter:
    """The page's files, and its endpoints below /page/api; its latents are counted on about ``n_tokens``."""
    router = APIRouter()
    router.include_router(browsing(engine, limits, door, n_tokens))

    @router.get("/")
    async def index() -> Response:
        return files.answer("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        return files.answer(name)

    @router.get("/page/api/state")
    async def state(request: Request) -> JSONResponse:
        door.check(request)
        return _json(views.about(engine, limits))

    @router.post("/page/api/continue")
    async def continued(request: Request) -> Response:
        door.check(request)
        choices = choices_of(read(ContinueBody, await read_json(request)), engine, limits)
        submit(engine, [choice.ask for choice in choices])
        streamed = lines(request, engine, limits, choices)
        return StreamingResponse(streamed, media_type="application/x-ndjson", headers=files.HEADERS)

    @router.post("/page/api/token")
    async def token(request: Request) -> JSONResponse:
        door.check(request)
        body = read(TokenBody, await read_json(request))
        views.check_token(engine.run, body, limits)
        return _json(await on_engine(request, engine, limits, lambda run: views.token_view(engine, run, body)))

    @router.post("/page/api/ablate")
    async def ablated(request: Request) -> JSONResponse:
        door.check(request)
        body = read(AblateBody, await read_json(request))
        views.check_token(engine.run, body, limits)
        where = views.hookpoint_of(engine.run, body.hookpoint)
        found = await on_engine(
            request, engine, limits, lambda run: ablate(run, body.ids, body.variant, body.steer, body.n, where)
        )
        return _json(views.ablations_view(engine, found))

    return router


def _json(found: dict[str, Any]) -> JSONResponse:
    return JSONResponse(found, headers=files.HEADERS)
