"""The page to play with, served from this process, and opened in a browser."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import saelora
from saelora.use.serving.app import application
from saelora.use.serving.engine import Engine
from saelora.use.serving.http import Limits

# a page that glides on between the press and the release of a button takes the click from under it
STILL: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}


@contextmanager
def served(run: Path, cache: Path | None = None, latent_tokens: int = 200) -> Iterator[str]:
    """Its address; the count of latents is kept in ``cache``."""
    engine = Engine(saelora.load(run))
    place = socket.create_server(("127.0.0.1", 0))
    app = application(engine, Limits(most_tokens=64, timeout=60), latent_tokens=latent_tokens)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        if cache is not None:
            patch.setenv("SAELORA_CACHE", str(cache))
        thread.start()
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        server.should_exit = True
        engine.stop()
        thread.join(20)


@contextmanager
def visited(browser: Any, address: str, patience: float = 60) -> Iterator[Callable[..., Any]]:
    """Opens a view of it; afterwards nothing may have been asked of others, or gone wrong in the console."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def go(view: str = "", **options: Any) -> Any:
        context = browser.new_context(**STILL | options)
        context.set_default_timeout(patience * 1000)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        shown.on("request", lambda request: trouble.append(request.url) if address not in request.url else None)
        shown.goto(f"{address}/{view}")
        shown.locator("article[data-variant=adapted]").wait_for(state="attached")
        return shown

    yield go
    for context in contexts:
        context.close()
    assert trouble == []
