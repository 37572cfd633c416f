"""What --parts capabilities found."""

from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from saelora.evals.estimate import Estimate
from saelora.evals.trained import Trained
from saelora.evals.variant import Variant
from saelora.records import Number

Difference = Literal["adapted_minus_sae", "adapted_clean_minus_base", "sae_minus_base"]


class Score(TypedDict):
    """A task's score and the standard error of its mean over documents; None where it is no such mean."""

    value: Number | None
    stderr: Number | None


@dataclass(frozen=True)
class Task:
    """One metric of a task, or of a group of tasks.

    Args:
        n: documents.
        n_shot: examples before each question; None in a group whose tasks differ.
        differences: means over documents; undefined where a score is no such mean.
        chance: accuracy of guessing, where documents have choices.
        group: the task's, None of an outermost one.
    """

    task: str
    metric: str
    n: int
    n_shot: int | None
    scores: dict[Variant, Score]
    differences: dict[Difference, Estimate]
    chance: Number | None
    higher_is_better: bool | None
    group: str | None
    subtasks: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Scores of the variants on tasks of lm-evaluation-harness.

    Args:
        trained: whose doing it is; older versions knew adapters alone.
        limit: documents of each task; None is all.
        bos: every text began with BOS.
        lm_eval: its version.
    """

    arms: list[Variant]
    tasks: list[Task]
    trained: Trained = Trained.ADAPTER
    limit: int | None
    bos: bool | None = None
    lm_eval: str
