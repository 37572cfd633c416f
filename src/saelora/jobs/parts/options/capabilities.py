"""Options of --parts capabilities."""

from dataclasses import dataclass
from typing import Any

from saelora.config import Configuration, option
from saelora.errors import InputError
from saelora.evals import lm_tasks


@dataclass(kw_only=True)
class Options(Configuration):
    """Capabilities (lm-evaluation-harness)"""

    tasks: tuple[str, ...] = option(
        (), "lm-eval's tasks, groups or patterns, e.g. mmlu hellaswag truthfulqa_mc2; blanks or commas between them"
    )
    task_folder: str | None = option(None, "a folder of lm-eval task files (.yaml) of your own, searched as well")
    limit: int | None = option(None, "documents of each task; default: all")
    fewshot: int | None = option(None, "examples before each question; default: each task's own number")
    capability_batch: int = option(8, "requests in one forward pass")
    capability_bos: bool = option(
        True, "begin every text with BOS, as in training; --no-capability-bos leaves it to the tokenizer"
    )


def check(config: Any) -> None:
    """Raise InputError for what can be wrong before a model is loaded."""
    names = lm_tasks.task_names(config.tasks)
    for flag, value, least in (
        ("limit", config.limit, 1),
        ("fewshot", config.fewshot, 0),
        ("capability-batch", config.capability_batch, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"--{flag} is {value}, expected {least} or more")
    lm_tasks.check_installed()
    lm_tasks.find(names, config.task_folder)
