"""Checkpoints that are whole or absent, and the newest good one among them."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from saelora.files import remove_leftovers, whole_folder, writing
from saelora.records import JsonObject

KEPT = 2
StateDict = dict[str, Any]  # what torch.save takes: tensors, plain values, and dicts of them


def save_checkpoint(folder: Path, step: int, state: StateDict, meta: JsonObject) -> Path:
    """Write one checkpoint atomically as ``folder/step-NNNNNNNN`` and drop all but the newest KEPT.

    ``state`` holds tensors and plain values; ``meta`` is JSON. The checkpoint appears under its name only when it
    is on disk in full, so a kill at any moment leaves the previous one.

    Raises:
        InputError: the disk is full or not writable; the previous checkpoint is kept.
    """
    final = folder / f"step-{step:08d}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)  # of a run that was killed: they would fill the disk
    with whole_folder(final) as part:
        torch.save(state, part / "state.pt")
        meta = {**meta, "step": step, "sha256": _sha256(part / "state.pt")}
        (part / "checkpoint.json").write_text(json.dumps(meta), encoding="utf-8")
    for old in _found(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path) -> tuple[StateDict, JsonObject] | None:
    """The newest checkpoint that reads back whole: (state, meta), or None where there is none."""
    for path in reversed(_found(folder)):
        try:
            meta = json.loads((path / "checkpoint.json").read_text())
            if meta["sha256"] == _sha256(path / "state.pt"):
                return torch.load(path / "state.pt", map_location="cpu", weights_only=True), meta
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError):
            continue
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
