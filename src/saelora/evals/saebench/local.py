"""Local data for SAEBench instead of the hub's: which files, and what stands in them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from saelora.errors import InputError

LOCAL_FILES = "probing*.jsonl (text, label, split) and scr.jsonl (text, label, attribute, split)"


class LocalData(TypedDict):
    """The local data files by their use, as the runner's job holds them."""

    probing: list[str]
    scr: str | None


def local_data(folder: Path) -> LocalData:
    """The local data files.

    Raises:
        InputError: no such folder, or none of the files in it.
    """
    if not folder.is_dir():
        raise InputError(f"--saebench-data {folder} is no folder: expected one that holds {LOCAL_FILES}")
    probing, scr = sorted(folder.glob("probing*.jsonl")), folder / "scr.jsonl"
    if not probing and not scr.is_file():
        raise InputError(f"--saebench-data {folder} holds no local data: expected {LOCAL_FILES}")
    for file in [*probing, *([scr] if scr.is_file() else [])]:
        _check_rows(file, ("text", "label", "attribute") if file == scr else ("text", "label"))
    found = [str(file.absolute()) for file in probing]
    return {"probing": found, "scr": str(scr.absolute()) if scr.is_file() else None}


def _check_rows(file: Path, keys: Sequence[str]) -> None:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else dict.fromkeys(keys)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not set(keys) <= row.keys():
            raise InputError(f"{file} line {number}: expected a JSON object with {', '.join(keys)}")
