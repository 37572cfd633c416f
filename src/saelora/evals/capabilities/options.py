"""Options of --parts capabilities."""

from saelora.config import Configuration, option
from saelora.evals.capabilities import tasks as lm_tasks
from saelora.limits import NOT_NEGATIVE, POSITIVE


class Options(Configuration):
    """Capabilities (lm-evaluation-harness)"""

    tasks: tuple[str, ...] = option(
        (), "lm-eval's tasks, groups or patterns, e.g. mmlu hellaswag truthfulqa_mc2; blanks or commas between them"
    )
    task_folder: str | None = option(None, "a folder of lm-eval task files (.yaml) of your own, searched as well")
    limit: int | None = option(None, "documents of each task; default: all", limit=POSITIVE)
    fewshot: int | None = option(
        None, "examples before each question; default: each task's own number", limit=NOT_NEGATIVE
    )
    capability_batch: int = option(8, "requests in one forward pass", limit=POSITIVE)
    capability_bos: bool = option(
        True, "begin every text with BOS, as in training; --no-capability-bos leaves it to the tokenizer"
    )


def check(config: Options) -> None:
    """Raise InputError for what can be wrong before a model is loaded."""
    names = lm_tasks.task_names(config.tasks)
    lm_tasks.check_installed()
    lm_tasks.find(names, config.task_folder)
