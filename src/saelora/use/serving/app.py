"""The server's application: OpenAI's endpoints and the page, over an engine."""

from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from saelora.use.serving.engine import Engine
from saelora.use.serving.http import Door, Limits, tell_refusals
from saelora.use.serving.openai import openai
from saelora.use.serving.page.routes import page


def application(
    engine: Engine,
    limits: Limits,
    *,
    token: str | None = None,
    hosts: Sequence[str] = ("127.0.0.1", "localhost"),
    latent_tokens: int = 4096,
) -> FastAPI:
    """The server's application.

    Args:
        token: what clients have to send as their API key; None lets everybody in.
        hosts: names that a request may call this server by: a page of the web that resolves to it cannot.
        latent_tokens: of held-out text, about, that the page's latents are counted on.
    """
    app = FastAPI(title="saelora", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    tell_refusals(app)
    door = Door(token)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": engine.n_waiting}

    app.include_router(openai(engine, limits, door))
    app.include_router(page(engine, limits, door, latent_tokens))
    return app


def stopping_first(engine: Engine) -> type[uvicorn.Server]:
    """A server that at a signal ends what is generated, tells its clients, and then itself."""

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            engine.begin_stop()
            super().handle_exit(sig, frame)

    return Server
