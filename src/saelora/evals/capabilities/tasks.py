"""lm-evaluation-harness's tasks: found, loaded once, and asked the same way however often they are run."""

import difflib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject

INSTALL = "pip install 'saelora[capabilities]'"
_SEED = 1234  # lm-eval's own, for the choice of few-shot examples


def check_installed() -> None:
    """Raise InputError where lm-eval is missing."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise InputError(
            f"--parts capabilities runs lm-evaluation-harness, which is not installed: {INSTALL}"
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """lm-eval's remarks and bars stay off the screen, and what it prints off stdout, where results go."""
    from lm_eval.api import task
    from tqdm import tqdm

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task.tqdm
    logger.setLevel(logging.ERROR)
    task.tqdm = partial(tqdm, disable=True)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar


@dataclass(frozen=True)
class Loaded:
    """Tasks and groups that are ready to run.

    tasks: lm-eval's dictionary of them.  order: their names, each group before what is in it.
    """

    tasks: JsonObject
    order: list[str]

    def reset(self) -> None:
        """Draw the same few-shot examples again."""
        for task in self.tasks["tasks"].values():
            task.set_fewshot_seed(seed=_SEED)

    def n_requests(self, limit: int | None) -> int:
        """What one run of all tasks asks of a model."""
        self.reset()
        total = 0
        with quietly():
            for task in self.tasks["tasks"].values():
                task.build_all_requests(limit=limit, rank=0, world_size=1)
                total += sum(instance.repeats for instance in task.instances)
        return total

    def children(self, name: str) -> list[str]:
        return list(self.tasks.get("group_map", {}).get(name, []))

    def leaves(self, name: str) -> list[str]:
        """The tasks in a group, or the task itself."""
        inside = self.children(name)
        return [leaf for child in inside for leaf in self.leaves(child)] if inside else [name]

    def group_of(self, name: str) -> str | None:
        return next((group for group in self.tasks.get("group_map", {}) if name in self.children(group)), None)


def task_names(tasks: Sequence[str]) -> list[str]:
    """Names given one by one or joined by commas.

    Raises:
        InputError: there are none.
    """
    names = [name.strip() for given in tasks for name in given.split(",") if name.strip()]
    if not names:
        raise InputError(
            "--parts capabilities needs tasks of lm-evaluation-harness: name some with --tasks, e.g. hellaswag"
        )
    return list(dict.fromkeys(names))


def find(names: Sequence[str], folder: str | None) -> Any:
    """lm-eval's index in which all names are; patterns such as mmlu_* count.

    The user's folder is searched alone first: indexing lm-eval's own thousands of tasks takes a while.

    Raises:
        InputError: no such folder, or a name that is no task.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(
                f"--task-folder {folder} is no folder: expected one that holds lm-eval's task files (.yaml)"
            )
        own = TaskManager(include_path=folder, include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return own
    every = TaskManager(include_path=folder)
    for name in names:
        if not every.match_tasks([name]):
            near = difflib.get_close_matches(name, every.all_tasks, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"task {name!r} is not known to lm-evaluation-harness{hint or ': lm-eval ls tasks'}")
    return every


def load(names: Sequence[str], manager: Any, fewshot: int | None) -> Loaded:
    """Load tasks with their documents.

    Args:
        manager: from ``find``.
        fewshot: examples before each question; None is each task's own number. A task that sets 0 keeps it, which is
            lm-eval's rule.

    Raises:
        InputError: their data cannot be had.
    """
    matched = [name for given in names for name in manager.match_tasks([given])]
    try:
        with quietly():
            tasks = manager.load(list(dict.fromkeys(matched)))
    except Exception as error:  # the hub, its client, the readers and lm-eval's own checks share no base class
        raise InputError(
            f"the tasks {', '.join(names)} cannot be loaded ({on_one_line(error)}): their data come from the "
            f"Hugging Face hub unless they are local"
        ) from error
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(f"task {task.task_name} runs code that the model writes: run it with lm-eval itself")
    loaded = Loaded(dict(tasks), [])
    inside = {child for children in tasks.get("group_map", {}).values() for child in children}
    for name in [*tasks.get("groups", {}), *tasks["tasks"]]:
        if name not in inside:
            _append(loaded, name)
    return loaded


def _append(loaded: Loaded, name: str) -> None:
    loaded.order.append(name)
    for child in loaded.children(name):
        _append(loaded, child)
