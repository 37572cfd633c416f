"""saelora open: a run's page to play with, served here and opened in the browser."""

import socket
import threading
import webbrowser
from typing import Any

from saelora.config import configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.use import serve


class Config(serve.Config):
    """Options of open"""

    port: int = option(8000, "0 takes a free one, and so does the default where it is taken", limit=serve.PORT)
    browser: bool = option(True, "open the page in the browser")


def open(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Serve a run's page (and OpenAI's API) until stopped (Ctrl-C), and open it in the browser.

    Raises:
        InputError: as ``serve``.
    """
    config = configured(Config, config, options)
    if not config.ref:
        raise InputError("no run given: saelora open REF, as in saelora open saelora-demo")

    def listen() -> socket.socket:
        try:
            return serve.listening(config.host, config.port)
        except InputError:
            if "port" in config.given:
                raise
            return serve.listening(config.host, 0)

    def say(console: Console, where: str, variants: tuple[str, ...], token: str | None) -> None:
        console.say(f"{config.ref} is at {where}/ ({', '.join(variants)}); Ctrl-C stops")
        if token:
            console.say("the page asks for the token")
        if config.browser:
            threading.Thread(target=webbrowser.open, args=(f"{where}/",), daemon=True).start()

    return serve.run_server(config, listen, say)
