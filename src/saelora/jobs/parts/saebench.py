"""--parts saebench."""

import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from saelora.config import Configuration, Count, option
from saelora.errors import InputError
from saelora.evals.saebench import environment
from saelora.evals.saebench.results import EVALS
from saelora.evals.saebench.run import LOCAL_FILES, Plan, local_data, run_saebench
from saelora.jobs.parts import Subject
from saelora.models.assets import cache_dir

Eval = Literal["core", "sparse_probing", "scr", "tpp", "absorption"]
SMALL = {"train": 160, "test": 80, "context": 64, "batch": 16, "core_batches": 8, "core_variance_batches": 8}


@dataclass(kw_only=True)
class Options(Configuration):
    """SAEBench (runs in an environment of its own, made on first use)"""

    saebench_evals: tuple[Eval, ...] = option(EVALS, "SAEBench's evaluations to run")
    saebench_data: str | None = option(
        None, f"a folder of local data instead of the hub's: {LOCAL_FILES}; core then reads the held-out rows"
    )
    saebench_python: str | None = option(None, "python of an environment that has SAEBench 0.6; default: one is made")
    saebench_work: str | None = option(None, "folder for logs and SAEBench's own files; default: one in the cache")
    saebench_small: bool = option(False, f"a quick try: {', '.join(f'{k} {v}' for k, v in SMALL.items())}")
    saebench_train: Count = option(Count(4000), "texts to train a probe on, labels together (SAEBench: 4000)")
    saebench_test: Count = option(Count(1000), "texts to test a probe on, labels together (SAEBench: 1000)")
    saebench_context: int = option(128, "tokens of a text (SAEBench: 128)")
    saebench_batch: int = option(32, "texts in one forward pass, and in one pass through the SAE")
    saebench_core_tokens: Count = option(Count(400_000), "tokens for core's losses, and for its figures of the SAE")
    saebench_twice: bool = option(
        False, "also measure on the adapted model what an adapter above the SAE cannot change"
    )


def check(config: Any) -> None:
    """Raise InputError for what can be wrong before a model is loaded."""
    if not config.saebench_evals:
        raise InputError(f"--saebench-evals is empty: name some of {' '.join(EVALS)}")
    for name in ("train", "test", "context", "batch", "core_tokens"):
        if getattr(config, f"saebench_{name}") < 1:
            raise InputError(f"--saebench-{name.replace('_', '-')} is 0, expected 1 or more")
    if config.saebench_data:
        local_data(Path(config.saebench_data))
    if config.saebench_python:
        environment.check_python(config.saebench_python)
    if config.saebench_work and Path(config.saebench_work).exists() and any(Path(config.saebench_work).iterdir()):
        raise InputError(f"--saebench-work {config.saebench_work} is not empty: name another folder")


def run(subject: Subject, config: Any) -> dict[str, Any]:
    """SAEBench's metrics of the original and the adapted model, and which of them cannot differ."""
    work = _work_folder(subject, config)
    if config.saebench_python:
        python = environment.check_python(config.saebench_python)
    else:
        if not (environment.environment_folder() / environment.READY).is_file():
            subject.console.say(f"making SAEBench's environment, once (minutes; its log is {work}/environment.log)")
        python = environment.ensure(work / "environment.log")
    plan = _plan(subject, config)
    saes = {hookpoint: loaded.sae for hookpoint, loaded in subject.assembled.saes.items()}
    subject.console.say(f"SAEBench runs; what it says goes to {work}/base.log and {work}/adapted.log")
    with subject.console.progress("SAEBench", 2 * len(plan.evals) * len(saes), "evaluations") as bar:
        result = run_saebench(
            subject.model, saes, subject.tokenizer, subject.rows, plan, python, work, progress=bar.advance
        )
    return {
        **result,
        "data": f"{config.saebench_data}; core: the held-out rows" if config.saebench_data else "SAEBench's own",
        "sae_bench": environment.version_in(python),
        "command": command(subject.adapter, config),
        "sizes": dict(plan.sizes),
        "work": str(work),
    }


def command(adapter: str, config: Any) -> str:
    """The command that runs this again."""
    words = ["saelora", "evaluate", "--adapter", adapter, "--parts", "saebench"]
    for name, default in vars(Options()).items():
        value = getattr(config, name)
        if value == default or name == "saebench_work":
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _plan(subject: Subject, config: Any) -> Plan:
    context = min(config.saebench_context, subject.rows.shape[1]) if config.saebench_data else config.saebench_context
    sizes = {"train": config.saebench_train, "test": config.saebench_test, "batch": config.saebench_batch}
    sizes = {name: int(value) for name, value in sizes.items()} | {"context": context}
    tokens, core_batch = int(config.saebench_core_tokens), min(16, config.saebench_batch)
    if config.saebench_data:  # the held-out rows are all there is
        core_batch = min(core_batch, len(subject.rows))
        tokens = min(tokens, len(subject.rows) * context)
    batches = max(1, tokens // (core_batch * context))
    sizes |= {"core_batch": core_batch, "core_batches": batches, "core_variance_batches": batches}
    if config.saebench_small:
        sizes = {name: min(value, SMALL.get(name, value)) for name, value in sizes.items()}
    return Plan(
        evals=config.saebench_evals,
        sizes=sizes,
        data=Path(config.saebench_data) if config.saebench_data else None,
        dtype=str(subject.assembled.loaded.dtype).removeprefix("torch."),
        device=_device(next(subject.model.parameters()).device),
        exclude_special=bool(subject.token_mask.exempt_ids),
        twice=config.saebench_twice,
    )


def _device(device: torch.device) -> str:
    return device.type if device.index in (None, 0) else str(device)


def _work_folder(subject: Subject, config: Any) -> Path:
    """An empty folder for everything that is written on the way."""
    if config.saebench_work:
        folder = Path(config.saebench_work)
    else:
        folder = cache_dir() / "saebench" / f"{Path(subject.adapter).name}-{time.strftime('%Y%m%d-%H%M%S')}"
        shutil.rmtree(folder, ignore_errors=True)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
