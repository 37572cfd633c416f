"""--parts tokens."""

from dataclasses import dataclass
from typing import Any

from saelora.jobs.parts import Subject


@dataclass(kw_only=True)
class Options:
    """Tokens"""


def run(subject: Subject, config: Any) -> dict[str, Any]:
    raise NotImplementedError
