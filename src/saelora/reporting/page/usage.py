"""How to load, play with and repeat what a page tells of, as code that runs as it stands."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saelora.config import to_dict
from saelora.evals.registry import EVALUATIONS
from saelora.flags import as_words
from saelora.manifest import MANIFEST
from saelora.options import SplicedConfig
from saelora.records import JsonObject
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import Section

ABOUT = "Code that runs as it stands, from the folder that this page was made in."
PROMPT = "The state of our union is"
_OF_MACHINE = ("device", "dtype", "shard", "compile")  # which evaluate does not take from the run
_WHOLE = ("model", "sae", "transcoders", "data")  # where one is not the run's, its companions are not taken from it


@dataclass(frozen=True)
class Code:
    """Lines to copy, and what they do."""

    told: str
    text: str


def section(runs: Sequence[Run]) -> Section:
    """How each run is used."""
    made = [(run.label if len(runs) > 1 else "", _of(run)) for run in runs]
    return _section(made, is_open=len(runs) == 1)


def of_folder(folder: Path | None, repeat: Sequence[Code], told: str) -> Section:
    """How the best adapter of many that was kept is used, and in words what is to be known."""
    codes = [*(load_and_play(folder) if folder is not None else []), *repeat]
    about = f"{ABOUT} {told}" if codes else told
    return _section([("", codes)] if codes else [], is_open=True, about=about)


def load_and_play(folder: Path, weights: str = "adapter_config.json") -> list[Code]:
    """Three lines of Python, and the page that runs the model.

    Args:
        weights: a file that the folder must have for it.
    """
    lacks = _absent(folder, weights, "what it trained")
    python = f"import saelora\nrun = saelora.load({str(folder)!r})\nprint(run.generate({PROMPT!r}))"
    return [
        Code(f"Load it in Python{lacks}", python),
        Code(f"Play with it in the browser{lacks}", f"saelora open {shlex.quote(str(folder))}"),
    ]


def _section(made: Sequence[tuple[str, Sequence[Code]]], *, is_open: bool, about: str = ABOUT) -> Section:
    gist = [("", "saelora.load, saelora open, and the command that makes it again")]
    return Section("use", "Load it, play with it, repeat it", about, short="Use", extra=made, gist=gist, open=is_open)


def _of(run: Run) -> list[Code]:
    again = _again(run.folder)
    command = "finetune-sae" if run.manifest.method == "sae" else "adapt"
    config = shlex.quote(str(run.folder / "config.yaml"))
    repeat = "\n".join([f"saelora {command} --config {config} --out {again}", *_evaluations(run, again)])
    lacks = _absent(run.folder, "config.yaml", "its configuration")
    weights = "adapter_config.json" if run.manifest.method in ("lora", "lora+sae") else MANIFEST
    return [*load_and_play(run.folder, weights), Code(f"Make it again{lacks}", repeat)]


def _evaluations(run: Run, again: str) -> list[str]:
    """The commands that measure its parts with the options that they had, one for all that share theirs."""
    together: dict[tuple[str, ...], list[str]] = {}
    for name, file in run.parts.items():
        shared = tuple(_words_of_all(run, file.options or {}))
        if name != "loss" or shared:  # the losses themselves the run measures too
            together.setdefault(shared, []).append(name)
    told = []
    for shared, parts in together.items():
        own = [word for name in parts for word in _words_of_part(name, run.parts[name].options or {})]
        told.append(f"saelora evaluate --adapter {again} {shlex.join([*shared, '--parts', *parts, *own])}")
    return told


def _words_of_all(run: Run, options: JsonObject) -> list[str]:
    """Options that hold for all parts, where they are neither the run's own nor, of the machine, the default."""
    fresh, own = to_dict(SplicedConfig()), run.manifest.config
    usual = {name: value if name in _OF_MACHINE else own.get(name, value) for name, value in fresh.items()}
    usual["revision"] = run.manifest.model.revision or usual["revision"]
    had = {name: options[name] for name in fresh if name in options and name != "quiet"}
    whole = any(had.get(name, usual[name]) != usual[name] for name in _WHOLE)
    told = {name: v for name, v in had.items() if v != usual[name] or (whole and v != fresh[name])}
    return [*as_words(SplicedConfig, told), *(["--other-weights"] if options.get("other_weights") else [])]


def _words_of_part(name: str, options: JsonObject) -> list[str]:
    """A part's own options that are not at their defaults."""
    module = EVALUATIONS[name].options if name in EVALUATIONS else None
    if module is None:
        return []
    fresh = to_dict(module.Options())
    return as_words(
        module.Options, {key: options[key] for key in fresh if key in options and options[key] != fresh[key]}
    )


def _absent(folder: Path, name: str, what: str) -> str:
    """That a file which the code needs is no longer there, as a page of published figures may find."""
    return "" if (folder / name).is_file() else f" ({what} is not in this folder: {name})"


def _again(folder: Path) -> str:
    """A folder beside it, as a shell takes it."""
    beside = folder if folder.name else Path("..", folder.resolve().name)
    return shlex.quote(str(beside.with_name(f"{beside.name}-again")))
