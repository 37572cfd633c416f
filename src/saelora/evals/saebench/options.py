"""Options of --parts saebench."""

from pathlib import Path
from typing import Literal

from saelora.config import Configuration, Count, option
from saelora.errors import InputError
from saelora.evals.saebench import environment
from saelora.evals.saebench.local import LOCAL_FILES, local_data
from saelora.evals.saebench.metrics import EVALS
from saelora.limits import POSITIVE

Eval = Literal["core", "sparse_probing", "scr", "tpp", "absorption"]
SMALL = {"train": 160, "test": 80, "context": 64, "batch": 16, "core_batches": 8, "core_variance_batches": 8}


class Options(Configuration):
    """SAEBench (runs in an environment of its own, made on first use)"""

    saebench_evals: tuple[Eval, ...] = option(EVALS, "SAEBench's evaluations to run")
    saebench_data: str | None = option(
        None, f"a folder of local data instead of the hub's: {LOCAL_FILES}; core then reads the held-out rows"
    )
    saebench_python: str | None = option(None, "python of an environment that has SAEBench 0.6; default: one is made")
    saebench_work: str | None = option(None, "folder for logs and SAEBench's own files; default: one in the cache")
    saebench_small: bool = option(False, f"a quick try: {', '.join(f'{k} {v}' for k, v in SMALL.items())}")
    saebench_train: Count = option(4000, "texts to train a probe on, labels together (SAEBench: 4000)", limit=POSITIVE)
    saebench_test: Count = option(1000, "texts to test a probe on, labels together (SAEBench: 1000)", limit=POSITIVE)
    saebench_context: int = option(128, "tokens of a text (SAEBench: 128)", limit=POSITIVE)
    saebench_batch: int = option(32, "texts in one forward pass, and in one pass through the SAE", limit=POSITIVE)
    saebench_core_tokens: Count = option(
        400_000, "tokens for core's losses, and for its figures of the SAE", limit=POSITIVE
    )
    saebench_twice: bool = option(
        False, "also measure on the adapted model what an adapter above the SAE cannot change"
    )


def check(config: Options) -> None:
    """Raise InputError for what can be wrong before a model is loaded."""
    if not config.saebench_evals:
        raise InputError(f"--saebench-evals is empty: name some of {' '.join(EVALS)}")
    if config.saebench_data:
        local_data(Path(config.saebench_data))
    if config.saebench_python:
        environment.check_python(config.saebench_python)
    if config.saebench_work and Path(config.saebench_work).exists() and any(Path(config.saebench_work).iterdir()):
        raise InputError(f"--saebench-work {config.saebench_work} is not empty: name another folder")
