"""What all endpoints share: who is let in, how a request's body is read, how a refusal is told, work on the engine."""

import asyncio
import hmac
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from saelora.errors import InputError, on_one_line
from saelora.use.run import LoadedRun
from saelora.use.serving.calls import Call, Late
from saelora.use.serving.engine import Busy, Engine
from saelora.use.serving.rows import Ask

MOST_BYTES = 2_000_000  # of a request
POLL = 0.1  # seconds between looks at whether a client is still there


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

    @property
    def told(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": None}}


@dataclass(frozen=True)
class Door:
    """Lets requests in that bring the token; all of them where there is none."""

    token: str | None = None

    def check(self, request: Request) -> None:
        """Raise Refused where the token is not the server's."""
        sent = request.headers.get("authorization", "")
        if self.token is not None and not hmac.compare_digest(sent.encode(), f"Bearer {self.token}".encode()):
            raise Refused(401, "give this server's token as the API key", "authentication_error")


def tell_refusals(app: FastAPI) -> None:
    """Answer a ``Refused`` by its status and its words; bad input is one of status 400."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.told, error.status, {"Retry-After": "1"} if error.status == 429 else None)

    @app.exception_handler(InputError)
    async def bad(request: Request, error: InputError) -> JSONResponse:
        return await refused(request, Refused(400, str(error)))


async def read_json(request: Request) -> bytes:
    """The body of a request that says that it is JSON, within the bounds."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON (Content-Type: application/json)")
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise Refused(413, f"a request may have {MOST_BYTES:,} bytes")
    return found


def submit(engine: Engine, asks: "list[Ask] | list[Call]") -> None:
    """Let asks wait for their turn, or raise Refused."""
    try:
        engine.submit(asks)
    except Busy:
        raise Refused(429, f"{engine.n_waiting} requests wait already: try again soon", "rate_limit_error") from None


def refusal(error: Exception) -> Refused:
    """How a client is told of what went wrong in the engine."""
    return Refused(400 if isinstance(error, InputError) else 500, on_one_line(error), "server_error")


async def on_engine(request: Request, engine: Engine, limits: Limits, work: Callable[[LoadedRun], Any]) -> Any:
    """What ``work`` makes of the loaded run, in its turn on the engine's thread.

    Raises:
        Refused: too many wait, it waited too long, the client has left, the server stops, or it failed.
    """
    call = Call(work, time.monotonic() + limits.timeout)
    submit(engine, [call])
    waiting = asyncio.wrap_future(call.done)
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=POLL)
            if not waiting.done() and await request.is_disconnected():
                raise Refused(499, "the client has left")
        return await waiting
    except Late:
        raise Refused(504, "this waited longer than the server's timeout: try again", "timeout") from None
    except (CancelledError, asyncio.CancelledError):
        if not engine.stopping:
            raise
        raise Refused(503, "the server is stopping", "server_error") from None
    except Refused:
        raise
    except Exception as error:
        raise refusal(error) from error
    finally:
        call.cancel()
