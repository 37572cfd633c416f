"""saelora evaluate: what SAEs cost a model, and what an adapter buys back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saelora.config import Configuration, configured, option, to_dict, updated
from saelora.console import Console
from saelora.core.group import ALONE, Group
from saelora.core.replacement import replacement_of
from saelora.errors import InputError
from saelora.evals.loss_result import LossResult
from saelora.evals.registry import EVALUATIONS
from saelora.identity import About, measured_on
from saelora.jobs.acting import check_acting
from saelora.jobs.asked import Asked, read_kept
from saelora.jobs.fetched import beside, folder_of, is_on_hub
from saelora.jobs.recorded import described, fitting_parts, recorded_run, with_recorded, with_trained
from saelora.jobs.run import processes
from saelora.locks import tidy
from saelora.manifest import (
    PartFile,
    check_part_folder,
    check_writable,
    environment,
    write_json,
    write_part,
)
from saelora.models.hookpoints import Hookpoint
from saelora.named import check_named
from saelora.options import SplicedConfig
from saelora.records import JsonObject
from saelora.reporting.text import loss_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saelora.assemble import Assembled
    from saelora.evals.subject import Subject

    Part = str
else:
    Part = Literal[("loss", *EVALUATIONS, "all")]
ALL = ("loss", *(each.name for each in EVALUATIONS.values() if each.in_all))


class EvaluateConfig(Configuration):
    """Evaluation"""

    adapter: str | None = option(
        None,
        "a saelora run's folder, or a hub repository owner/name that holds one; model, SAEs and data default to those "
        "it was made with",
    )
    parts: tuple[Part, ...] = option(
        ("loss",),
        f"what to measure, any of loss {' '.join(EVALUATIONS)}; all stands for {' '.join(ALL)}, and with --transcoders "
        "for replacement",
    )
    out: str | None = option(
        None,
        "where the results go: one JSON file (NAME.json), or a folder with a file for each part; default: parts beyond "
        "loss are written to ADAPTER/evals, where saelora report finds them, of a repository to NAME-evals here",
    )
    overwrite: bool = option(False, "measure parts anew whose results are there already")
    other_weights: bool = option(
        False, "measure an adapter with a model or SAE that it was not made with; the results say so"
    )


class Config(
    SplicedConfig,
    EvaluateConfig,
    *(each.options.Options for each in EVALUATIONS.values() if each.options),  # type: ignore[misc]
):
    """Options of evaluate"""


_OWN = {*EvaluateConfig.model_fields} | {"quiet", "device", "dtype", "shard", "compile"}


def evaluate(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Measure a model, its splice, and (with ``adapter``) an adapter on held-out text.

    Returns:
        ce_base, ce_sae, kl_sae, loss_recovered_sae, and with an adapter ce_adapted, ce_adapted_clean, gap_closed, ...,
        with intervals, the SAEs' fvu and l0, and what identifies model, SAEs and token policy; each further part of
        ``parts`` under its name.

    Raises:
        InputError: bad input, with its remedy. Where some parts fail, the others are done all the same: it is a
            SomeFailed then, with a line for each and their ``results``.
    """
    config = configured(Config, config, options)
    group = processes(config)
    console = Console(quiet=config.quiet or not group.is_main)
    parts = parts_of(config, group)
    file, folder = _outputs(config, parts)
    given = config.given
    adapter = folder_of(config.adapter) if config.adapter else None
    recorded = recorded_run(adapter) if adapter else None
    if recorded is not None:
        parts = fitting_parts(parts, config.parts, recorded, str(config.adapter))
        config = with_recorded(config, recorded, _OWN)
    parts = _with_transcoders(config, parts)
    if config.replacement_mode == "independent" and parts == ["replacement"]:
        config = updated(config, {"replacement_mode": "cascading", "replacement_modes": ("independent",)})
    replacement_of(config.replacement_mode, config.add_error)
    check_named(config)
    check_acting(config, "evaluate", {"parts": parts})
    asked = Asked(parts, folder, console, {} if folder is None or config.overwrite else read_kept(folder, parts))
    asked.check(config)
    console.say(f"loading {config.model} and {', '.join([*config.sae, *config.transcoders]) or 'no SAE'}")
    # seconds, torch among them: after what can be wrong without them
    from saelora.assemble import assemble, autocast_dtype, validation_rows
    from saelora.core.check import check_against_whole
    from saelora.jobs.students import frozen_and_tuned
    from saelora.models.loading import pick_device
    from saelora.saes.suites import hint
    from saelora.train.shard import shard_layers

    here = updated(config, {"adapter": None if adapter is None else str(adapter)})
    assembled = assemble(config, recorded_policy=None if recorded is None else recorded.token_policy)
    if recorded is None and (told := hint(config.exempt, assembled.saes.values())):
        console.say(told)
    about = described(here, assembled, recorded, given, console)
    rows = group.on_main(lambda: validation_rows(config, assembled.loaded))
    about = measured_on(about, rows, autocast_dtype(assembled.loaded))
    model, tuned, about = with_trained(here, assembled, recorded, about)
    if config.shard:
        shard_layers(model, pick_device(config.device), group)
    asked.take_kept(about)
    if asked.todo() and "loss" not in asked.todo():  # evaluate_loss looks for itself
        with frozen_and_tuned(model, assembled, tuned) as (spliced, adapted):
            others = [adapted] if adapted is not None else []
            check_against_whole(model, spliced, rows[:2], others=others, autocast=autocast_dtype(assembled.loaded))

    def loss() -> LossResult:
        found = measure(console, assembled, model, rows, group, tuned)
        return found.model_copy(update={"method": recorded.method}) if tuned and recorded else found

    with ExitStack() as stack:
        # its splices are opened for the first of the parts that need it
        subject = cache(lambda: _subject(config, assembled, model, tuned, rows, console, stack))
        _run_parts(config, asked, loss, subject, about, folder)
    return _finish(config, asked, about, file if group.is_main else None, folder, console)


def _subject(
    config: Config,
    assembled: Assembled,
    model: nn.Module,
    tuned: dict[Hookpoint, Any],
    rows: Tensor,
    console: Console,
    stack: ExitStack,
) -> Subject:
    """What parts beyond the losses are measured on; ``stack`` closes its splices."""
    from saelora.assemble import VALIDATION_SEED, autocast_dtype, open_data, read_rows
    from saelora.evals.subject import Subject
    from saelora.jobs.students import frozen_and_tuned

    spliced, adapted = stack.enter_context(frozen_and_tuned(model, assembled, tuned))
    return Subject(
        model,
        spliced,
        assembled.token_mask,
        autocast_dtype(assembled.loaded),
        adapted,
        loaded=assembled.loaded,
        saes=assembled.saes,
        rows=rows,
        data=config,
        corpus=lambda: open_data(config),
        training_rows=lambda n: read_rows(config, assembled.loaded, n, "train", VALIDATION_SEED).input_ids,
        console=console,
        adapter=str(config.adapter),
    )


def _run_parts(
    config: Config,
    asked: Asked,
    loss: Callable[[], LossResult],
    subject: Callable[[], Subject],
    about: About,
    folder: Path | None,
) -> None:
    """Measure what is still to do and write each part as it ends; one that fails leaves the others."""
    import torch

    for part in asked.todo():
        started = time.monotonic()
        try:
            found = loss().to_json() if part == "loss" else EVALUATIONS[part].run(subject(), config)
            if folder is not None:
                write_part(folder, _part_file(part, found, config, about, started))
        except (InputError, torch.OutOfMemoryError) as error:
            asked.fail(part, error)
        else:
            asked.took(part, found)


def _finish(
    config: Config, asked: Asked, about: About, file: Path | None, folder: Path | None, console: Console
) -> JsonObject:
    """Write what one file is to hold, and say what failed.

    Raises:
        InputError: parts failed; the others are done.
    """
    results = asked.results()
    if not results:
        raise asked.error({})
    results["about"] = about.to_json()
    if file is not None:
        write_json(file, results)
    if folder is not None:
        tidy(folder)
    if folder is not None and asked.parts != ["loss"]:
        console.say(
            f"in {folder}/"
            if config.adapter is None or is_on_hub(config.adapter)
            else f"in {folder}/; saelora report {config.adapter} makes one page of it"
        )
    if asked.failed:
        raise asked.error(results)
    return results


def render(results: dict[str, Any]) -> str:
    """The results as a person reads them."""
    pages = [loss_table(LossResult.model_validate(results))] if "ce_base" in results else []
    for part, evaluation in EVALUATIONS.items():
        if part in results:
            pages.append("\n".join([part.upper(), *evaluation.lines(evaluation.read(results[part], "the result"))]))
    return "\n\n".join(pages)


def parts_of(config: Config, group: Group = ALONE) -> list[str]:
    """The parts that are asked for, in the order in which they are measured.

    Raises:
        InputError: a part beyond the losses without an adapter, or in several processes.
    """
    if not config.parts:
        raise InputError(f"parts is empty, so there is nothing to measure: give some of loss {' '.join(EVALUATIONS)}")
    asked = set(config.parts) | (set(ALL) if "all" in config.parts else set())
    parts = [part for part in ("loss", *EVALUATIONS) if part in asked]
    further = [part for part in parts if part != "loss"]
    adapted = [part for part in further if EVALUATIONS[part].adapted]
    if adapted and not config.adapter:
        raise InputError(f"--parts {adapted[0]} compares an adapted model with the original: name one with --adapter")
    if further and group.world > 1:
        raise InputError(f"--parts {further[0]} runs in one process, this is one of {group.world}: leave out torchrun")
    return parts


def _with_transcoders(config: Config, parts: list[str]) -> list[str]:
    """The parts, with those that ``all`` stands for where MLPs are replaced."""
    if "all" not in config.parts or not config.transcoders:
        return parts
    more = {each.name for each in EVALUATIONS.values() if each.of_transcoders}
    return [part for part in ("loss", *EVALUATIONS) if part in {*parts, *more}]


def _outputs(config: Config, parts: list[str]) -> tuple[Path | None, Path | None]:
    """The JSON file and the folder that the results go to, before anything is loaded.

    Raises:
        InputError: what is there already would be overwritten, or there is no place for it.
    """
    out = Path(config.out) if config.out else None
    if out is not None and out.suffix == ".json":
        if out.exists() and not config.overwrite:
            raise InputError(f"{out} exists: choose another --out, or --overwrite")
        if not out.absolute().parent.is_dir():
            raise InputError(f"{out} cannot be written: there is no folder {out.parent}")
        check_writable(out)
        return out, None
    folder = out
    if out is None and config.adapter and parts != ["loss"]:
        folder = beside(config.adapter, "evals") or Path(config.adapter) / "evals"
    if folder is not None:
        check_part_folder(folder)
        check_writable(folder)
    return None, folder


def _part_file(part: str, found: JsonObject, config: Config, about: About, started: float) -> PartFile:
    return PartFile(
        part=part,
        about=about,
        options=to_dict(config),
        environment=environment(),
        seconds=round(time.monotonic() - started, 1),
        result=found,
    )


def measure(
    console: Console,
    assembled: Assembled,
    model: nn.Module,
    rows: Tensor,
    group: Group = ALONE,
    tuned: dict[Hookpoint, Any] | None = None,
) -> LossResult:
    """``evaluate_loss`` of an assembled model on held-out rows [n_rows, context], with progress.

    ``tuned``: the adapted model's own SAEs, where they were trained.
    """
    from saelora.assemble import autocast_dtype
    from saelora.evals.loss import evaluate_loss

    with console.progress("evaluating", rows.numel()) as bar:
        found = evaluate_loss(
            model,
            {**assembled.sae_modules, **(tuned or {})},
            assembled.token_mask,
            rows,
            autocast=autocast_dtype(assembled.loaded),
            progress=bar.advance,
            group=group,
            reference=assembled.sae_modules if tuned else None,
            replacement=assembled.replacement,
        )
    result = LossResult.model_validate(found)
    for line in _doubts(assembled, result):
        console.say(line)
    return result


def _doubts(assembled: Assembled, found: LossResult) -> list[str]:
    """A line on each transcoder that predicts its MLP's output worse than that output's mean does."""
    from saelora.core.transcoding import transcoder_in

    reads = {str(h): each.reads for h, sae in assembled.sae_modules.items() if (each := transcoder_in(sae)) is not None}
    return [
        f"the transcoder at {where} has FVU {found.saes[where].fvu:.2f} on this text, worse than the MLP's mean output "
        f"(1): is it for this model, and trained to read {site} there?"
        for where, site in reads.items()
        if where in found.saes and found.saes[where].fvu > 1
    ]
