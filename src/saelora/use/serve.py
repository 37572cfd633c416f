"""saelora serve: a run behind OpenAI's endpoints, on this machine."""

import os
import socket
from collections.abc import Callable
from typing import Any

from saelora.collector import resting
from saelora.config import configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.limits import POSITIVE, Within
from saelora.use.options import Dtype, RunOptions

TOKEN = "SAELORA_TOKEN"
LOCAL = ("127.0.0.1", "localhost", "::1")
PORT = Within(least=0, most=65535)


class Config(RunOptions):
    """Options of serve"""

    dtype: Dtype = option("auto", "of the frozen weights; auto is bfloat16 on a GPU, float32 on a CPU")
    host: str = option("127.0.0.1", "address to listen at; another than this machine's own needs a token")
    port: int = option(8000, "0 takes a free one", limit=PORT)
    token: str | None = option(None, f"what clients send as API key; better in the environment, as {TOKEN}")
    max_batch: int = option(8, "requests to answer at once, in one batch", limit=POSITIVE)
    max_waiting: int = option(64, "requests that may wait; more are told to come again", limit=POSITIVE)
    max_tokens: int = option(1024, "tokens of a prompt and its answer together", limit=POSITIVE)
    timeout: float = option(120.0, "seconds for a request, its waiting included", limit=Within(above=0))
    latent_tokens: int = option(
        4096, "tokens of held-out text to count the page's latents on, in the background", limit=POSITIVE
    )


def serve(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Answer requests until stopped (Ctrl-C).

    Raises:
        InputError: no such run, an address that cannot be had, or one that others reach without a token.
    """
    config = configured(Config, config, options)
    if not config.ref:
        raise InputError("no run given: saelora serve REF, as in saelora serve saelora-demo")
    return run_server(config, lambda: listening(config.host, config.port), _say)


def run_server(
    config: Config,
    listen: Callable[[], socket.socket],
    say: Callable[[Console, str, tuple[str, ...], str | None], None],
) -> dict[str, Any]:
    """Load the run, listen, ``say`` where (console, address, variants, token), and answer until stopped."""
    console = Console(quiet=config.quiet)
    token = config.token or os.environ.get(TOKEN) or None
    if config.host not in LOCAL and token is None:
        raise InputError(
            f"--host {config.host} lets other machines in: set a token (--token, or {TOKEN}), or leave --host out"
        )
    try:
        with resting():
            import uvicorn

            from saelora.use.serving.app import application, stopping_first
            from saelora.use.serving.engine import Engine
            from saelora.use.serving.http import Limits
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "fastapi", "starlette"):
            raise
        raise InputError('serving needs FastAPI and uvicorn: pip install "saelora[serve]"') from error
    with listen() as place:
        with resting(keep=True):
            from saelora.use.loading import load

            loaded = load(str(config.ref), **config.loading())
        engine = Engine(loaded, most_rows=config.max_batch, most_waiting=config.max_waiting)
        hosts = (*LOCAL, "[") if config.host in LOCAL else ("*",)  # what Starlette takes [::1] for
        app = application(
            engine,
            Limits(config.max_tokens, config.timeout),
            token=token,
            hosts=hosts,
            latent_tokens=config.latent_tokens,
        )
        port = place.getsockname()[1]
        where = f"http://{'[::1]' if config.host == '::1' else config.host}:{port}"
        say(console, where, loaded.variants, token)
        server = stopping_first(engine)(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        try:
            server.run(sockets=[place])
        finally:
            engine.stop()
    return {"ref": config.ref, "address": where}


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        InputError: the address is taken, or not this machine's.
    """
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(kind, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
        place.listen(128)
    except OSError as error:
        place.close()
        raise InputError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): choose another --port"
        ) from error
    return place


def _say(console: Console, where: str, variants: tuple[str, ...], token: str | None) -> None:
    console.say(f"the page to play with: {where}/")
    key = ' -H "Authorization: Bearer $SAELORA_TOKEN"' if token else ""
    console.say(f"serving {', '.join(variants)} at {where}/v1 (OpenAI's API); Ctrl-C stops")
    console.say(
        f"try: curl {where}/v1/completions -H 'Content-Type: application/json'{key} "
        f"""-d '{{"model": "{variants[-1] if len(variants) < 4 else "adapted"}", "prompt": "Fellow citizens,"}}'"""
    )
