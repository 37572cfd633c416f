"""The one error that means "the input is wrong", as opposed to "this program is wrong"."""

from typing import Any


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was got, what was expected, what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    exit_code = 2


class SomeFailed(InputError):
    """Some of several things that were asked for cannot be had; the others are done.

    The message has a line for each. ``results`` is what the rest gave.
    """

    def __init__(self, lines: list[str], results: dict[str, Any]):
        super().__init__("\n".join(lines))
        self.results = results
