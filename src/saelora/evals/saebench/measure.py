"""--parts saebench."""

import shlex
import shutil
import time
from pathlib import Path

import torch

from saelora.evals.saebench import environment
from saelora.evals.saebench.options import SMALL, Options
from saelora.evals.saebench.result import SAEBench
from saelora.evals.saebench.run import Plan, run_saebench
from saelora.evals.subject import Subject
from saelora.models.assets import cache_dir


def run(subject: Subject, config: Options) -> SAEBench:
    """SAEBench's metrics of the original and the adapted model, and which of them cannot differ."""
    work = _work_folder(subject, config)
    if config.saebench_python:
        python = environment.check_python(config.saebench_python)
    else:
        if not (environment.environment_folder() / environment.READY).is_file():
            subject.console.say(f"making SAEBench's environment, once (minutes; its log is {work}/environment.log)")
        python = environment.ensure(work / "environment.log")
    plan = _plan(subject, config)
    saes = {hookpoint: loaded.sae for hookpoint, loaded in subject.saes.items()}
    subject.console.say(f"SAEBench runs; what it says goes to {work}/base.log and {work}/adapted.log")
    with subject.console.progress("SAEBench", 2 * len(plan.evals) * len(saes), "evaluations") as bar:
        result = run_saebench(
            subject.model, saes, subject.tokenizer, subject.rows, plan, python, work, progress=bar.advance
        )
    return SAEBench(
        **vars(result),
        data=f"{config.saebench_data}; core: the held-out rows" if config.saebench_data else "SAEBench's own",
        sae_bench=environment.version_in(python),
        command=command(subject.adapter, config),
        sizes=dict(plan.sizes),
        work=str(work),
    )


def command(adapter: str, config: Options) -> str:
    """The command that runs this again."""
    words = ["saelora", "evaluate", "--adapter", adapter, "--parts", "saebench"]
    for name, default in vars(Options()).items():
        value = getattr(config, name)
        if value == default or name == "saebench_work":
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _plan(subject: Subject, config: Options) -> Plan:
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
        dtype=str(subject.loaded.dtype).removeprefix("torch."),
        device=_device(next(subject.model.parameters()).device),
        exclude_special=bool(subject.token_mask.exempt_ids),
        twice=config.saebench_twice,
    )


def _device(device: torch.device) -> str:
    return device.type if device.index in (None, 0) else str(device)


def _work_folder(subject: Subject, config: Options) -> Path:
    """An empty folder for everything that is written on the way."""
    if config.saebench_work:
        folder = Path(config.saebench_work)
    else:
        folder = cache_dir() / "saebench" / f"{Path(subject.adapter).name}-{time.strftime('%Y%m%d-%H%M%S')}"
        shutil.rmtree(folder, ignore_errors=True)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
