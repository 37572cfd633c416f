"""The parts that are asked for: which are there already and answer what is asked, which fail, which are to be done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelora.config import Configuration, to_dict
from saelora.console import Console
from saelora.errors import InputError, SomeFailed
from saelora.evals.registry import EVALUATIONS, on_rows
from saelora.identity import OTHER_ROWS, sae_names, same_saes, text_differs
from saelora.manifest import part_file, read_json
from saelora.options import DataConfig

# options that say how a part is run, not what is measured
_HOW = ("capability_batch", "saebench_batch", "saebench_python", "saebench_work", "batch_rows")
_REMEDY = "--overwrite measures it anew, --out FOLDER keeps both"


class Asked:
    """The parts of one evaluation: a part's failure leaves the others, and one that is there is not measured again.

    Args:
        parts: in the order in which they are measured.
        folder: where their files are, or None.
        kept: what ``read_kept`` found of them.
    """

    def __init__(self, parts: list[str], folder: Path | None, console: Console, kept: Mapping[str, Any]):
        self.parts, self.folder, self.console = parts, folder, console
        self.kept = dict(kept)
        self.failed: dict[str, str] = {}
        self.results: dict[str, Any] = {}
        self._done: set[str] = set()

    def check(self, config: Configuration) -> None:
        """All that can be checked without a model.

        Raises:
            InputError: no part is left.
        """
        for part in self.parts:
            module: Any = EVALUATIONS[part].options if part in EVALUATIONS else None
            try:
                if part in self.kept:
                    other_options(self._file(part), self.kept[part], getattr(module, "Options", None), config)
                elif check := getattr(module, "check", None):
                    check(config)
            except InputError as error:
                self.fail(part, error)
        if len(self.failed) == len(self.parts):
            raise self.error({})

    def take_kept(self, about: Mapping[str, Any]) -> None:
        """Results that are there and were measured on what is loaded; the others join those that failed."""
        for part in [part for part in self.parts if part in self.kept and part not in self.failed]:
            try:
                other_subject(self._file(part), self.kept[part], about)
            except InputError as error:
                self.fail(part, error)
            else:
                self.took(part, self.kept[part]["result"])
                self.console.say(f"{part} is measured already, in {self._file(part)}; --overwrite measures it anew")

    def todo(self) -> list[str]:
        """Parts that are neither there nor failed."""
        return [part for part in self.parts if part not in self.failed and part not in self._done]

    def took(self, part: str, found: dict[str, Any]) -> None:
        """A part's result; that of the losses is the evaluation's own."""
        self._done.add(part)
        self.results |= found if part == "loss" else {part: found}

    def fail(self, part: str, error: Exception) -> None:
        """Note why a part cannot be had."""
        self.failed[part] = " ".join(str(error).split())
        if len(self.parts) > 1:
            self.console.say(f"part {part} is left out: {self.failed[part]}")

    def error(self, results: dict[str, Any]) -> InputError:
        """What failed, a line each."""
        if len(self.parts) == 1:
            return InputError(self.failed[self.parts[0]])
        lines = [f"part {part} was not measured: {self.failed[part]}" for part in self.parts if part in self.failed]
        return SomeFailed(lines, results)

    def _file(self, part: str) -> Path:
        assert self.folder is not None
        return part_file(self.folder, part)


def read_kept(folder: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The files of parts that were measured; one that cannot be read is {"unreadable": why}."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        path = part_file(folder, part)
        if path.exists():
            try:
                file = read_json(path)
                if not isinstance(file, dict) or not isinstance(file.get("result"), dict):
                    raise InputError(f"{path} holds no result of saelora evaluate")
                if part in EVALUATIONS:
                    EVALUATIONS[part].read(file["result"], path)
                found[part] = file
            except InputError as error:
                found[part] = {"unreadable": str(error)}
    return found


def other_options(path: Path, file: dict[str, Any], kind: type[Configuration] | None, config: Configuration) -> None:
    """Raise InputError where a part's file is no answer by its options alone, or cannot be read.

    Args:
        kind: the class of the part's own options; None: it has none.
    """
    if "unreadable" in file:
        raise InputError(f"{file['unreadable']}: {_REMEDY}")
    names = [] if kind is None else [name for name in kind.model_fields if name not in _HOW]
    if not (file.get("about") or {}).get("heldout"):  # from before rows had a fingerprint
        names += [name for name in DataConfig.model_fields if name not in _HOW]
    then, now, fresh = file.get("options") or {}, to_dict(config), to_dict(type(config)())
    for name in names:
        before = then.get(name, fresh[name])  # an option that was not there yet had its default
        if before != now[name]:
            raise InputError(f"{path} was measured with {name} {before}, now it is {now[name]}: {_REMEDY}")


def other_subject(path: Path, file: dict[str, Any], about: Mapping[str, Any]) -> None:
    """Raise InputError where a part was measured on another model, SAE, adapter, text, policy or precision."""
    then = file.get("about") or {}
    differs, _ = text_differs(then, about)
    if not on_rows(str(file.get("part"))):
        differs = [each for each in differs if not each.startswith(OTHER_ROWS)]
    if "saes" in then and not same_saes(then["saes"], about["saes"]):
        differs.append(f"another SAE ({sae_names(then['saes'])}, not {sae_names(about['saes'])})")
    for key, told in (("adapter", "another adapter"), ("tuned_saes", "another trained SAE")):
        if then.get(key) and about.get(key) and then[key] != about[key]:
            differs.append(f"{told} ({then[key]}, not {about[key]})")
    if differs:
        raise InputError(f"{path} was measured on {' and '.join(differs)}: {_REMEDY}")
