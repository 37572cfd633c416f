"""How to load, play with and repeat what a page tells of, as code that runs as it stands."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saelora.manifest import MANIFEST
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import Section

ABOUT = "Code that runs as it stands, from the folder that this page was made in."
PROMPT = "The state of our union is"


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
    repeat = f"saelora {command} --config {config} --out {again}"
    parts = [name for name in run.parts if name != "loss"]
    if parts:
        repeat += f"\nsaelora evaluate --adapter {again} --parts {' '.join(parts)}"
    lacks = _absent(run.folder, "config.yaml", "its configuration")
    weights = "adapter_config.json" if run.manifest.method in ("lora", "lora+sae") else MANIFEST
    return [*load_and_play(run.folder, weights), Code(f"Make it again{lacks}", repeat)]


def _absent(folder: Path, name: str, what: str) -> str:
    """That a file which the code needs is no longer there, as a page of published figures may find."""
    return "" if (folder / name).is_file() else f" ({what} is not in this folder: {name})"


def _again(folder: Path) -> str:
    """A folder beside it, as a shell takes it."""
    beside = folder if folder.name else Path("..", folder.resolve().name)
    return shlex.quote(str(beside.with_name(f"{beside.name}-again")))
