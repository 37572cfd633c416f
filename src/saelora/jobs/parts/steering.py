"""--parts steering."""

from dataclasses import dataclass
from typing import Any

from saelora.jobs.parts import Subject


@dataclass(kw_only=True)
class Options:
    """Steering"""


def run(subject: Subject, config: Any) -> dict[str, Any]:
    raise NotImplementedError
