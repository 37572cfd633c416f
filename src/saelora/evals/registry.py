"""The evaluations beyond the losses, one line each; all else of one lies in its folder ``saelora.evals.NAME``.

A folder holds these modules, of which no more is imported than is asked for:

- options: ``Options``, and ``check(config)`` of what can be wrong before anything is loaded; neither imports torch.
- result: the frozen dataclass that the others share; its JSON is what files hold. No torch.
- measure: ``run(subject, config)``, the measurement; it returns the result.
- summary: ``lines(result)``, the finding in plain words.
- section: ``sections(runs)``, its chapters of the page of ``saelora report``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from saelora.config import Configuration
from saelora.evals.capabilities import options as capabilities
from saelora.evals.capabilities.result import Capabilities
from saelora.evals.drift.result import Drift
from saelora.evals.faithfulness import options as faithfulness
from saelora.evals.faithfulness.result import Faithfulness
from saelora.evals.replacement import options as replacement
from saelora.evals.replacement.result import ReplacementResult
from saelora.evals.saebench import options as saebench
from saelora.evals.saebench.result import SAEBench
from saelora.evals.steering import options as steering
from saelora.evals.steering.result import Steering
from saelora.evals.tokens import options as tokens
from saelora.evals.tokens.result import Tokens
from saelora.records import JsonObject, from_json, to_json

if TYPE_CHECKING:
    from saelora.evals.subject import Subject
    from saelora.reporting.page.read import Run
    from saelora.reporting.page.view import Section


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, of an adapted model for the most part.

    Args:
        result: the kind of its result.
        options: the module of its options, where it has some.
        of_trained_saes: it has something to say of a run that trained its SAE.
        on_rows: it is measured on the run's held-out rows; False: it brings texts of its own.
        in_all: ``--parts all`` includes it: it needs nothing beside the adapter's run.
        of_transcoders: it is about MLPs that ``--transcoders`` replaces, and ``--parts all`` includes it for them; it
            measures each mode of replacement that it is asked for, whatever the run's own is.
        of_saes: it is about SAEs alone, and refused where a transcoder is spliced in.
        adapted: it needs an adapter.
    """

    name: str
    result: type[Any]
    options: ModuleType | None = None
    of_trained_saes: bool = False
    on_rows: bool = True
    in_all: bool = True
    of_transcoders: bool = False
    of_saes: bool = False
    adapted: bool = True

    def run(self, subject: "Subject", config: Configuration) -> JsonObject:
        """Measure; returns what its file is to hold."""
        found: dict[str, Any] = to_json(self._module("measure").run(subject, config))
        return found

    def read(self, found: JsonObject, path: str | Path) -> Any:
        """The result that a file of this or an earlier version holds.

        Raises:
            InputError: an entry is missing or of another kind.
        """
        return from_json(self.result, found, path, f"measure it again with --parts {self.name} --overwrite")

    def lines(self, result: Any) -> list[str]:
        """The finding in plain words."""
        told: list[str] = self._module("summary").lines(result)
        return told

    def sections(self, runs: Sequence["Run"]) -> list["Section"]:
        """Its chapters of the page of these runs, whether or not they have measured it."""
        made: list[Section] = self._module("section").sections(runs)
        return made

    def _module(self, name: str) -> Any:
        return import_module(f"saelora.evals.{self.name}.{name}")


_ALL = (  # in the order in which they are measured and shown
    Evaluation("tokens", Tokens, tokens, of_trained_saes=True),
    Evaluation("drift", Drift, of_trained_saes=True),
    Evaluation("faithfulness", Faithfulness, faithfulness),
    Evaluation("steering", Steering, steering),
    Evaluation(
        "replacement",
        ReplacementResult,
        replacement,
        of_trained_saes=True,
        in_all=False,
        of_transcoders=True,
        adapted=False,
    ),
    Evaluation("capabilities", Capabilities, capabilities, of_trained_saes=True, on_rows=False, in_all=False),
    Evaluation("saebench", SAEBench, saebench, on_rows=False, in_all=False, of_saes=True),
)
EVALUATIONS = {each.name: each for each in _ALL}


def of_trained_saes(*, transcoders: bool) -> tuple[str, ...]:
    """What can be measured of a run that trained its SAEs, or its transcoders, the losses among it."""
    found = [each for each in _ALL if each.of_trained_saes and (transcoders or not each.of_transcoders)]
    return ("loss", *(each.name for each in found))


def on_rows(name: str) -> bool:
    """Whether an evaluation, or the losses, is measured on the run's held-out rows."""
    return name not in EVALUATIONS or EVALUATIONS[name].on_rows
