"""The one error that means "the input is wrong", as opposed to "this program is wrong"; and what steps raise."""

from typing import Any


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was got, what was expected, what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    exit_code = 2


class NonFiniteLoss(Exception):
    """A step's loss or gradient is NaN or infinite; nothing was updated by that step."""


def on_one_line(error: object, limit: int = 300) -> str:
    """An exception's message, or other text, on one line of at most ``limit`` characters; its kind if it is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, as part of a sentence; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory: Python's, a GPU's, or PyTorch's on a CPU."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "std::bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    )


class SomeFailed(InputError):
    """Some of several things that were asked for cannot be had; the others are done.

    The message has a line for each. ``results`` is what the rest gave.
    """

    def __init__(self, lines: list[str], results: dict[str, Any]):
        super().__init__("\n".join(lines))
        self.results = results
