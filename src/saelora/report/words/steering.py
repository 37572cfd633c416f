"""What --parts steering found, in plain words."""

from typing import Any


def lines(result: dict[str, Any]) -> list[str]:
    raise NotImplementedError
