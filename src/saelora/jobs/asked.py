"""The parts that are asked for: which are there already and answer what is asked, which fail, which are to be done."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelora.config import Configuration, to_dict
from saelora.console import Console
from saelora.errors import InputError, SomeFailed, on_one_line
from saelora.evals.registry import EVALUATIONS, on_rows
from saelora.identity import OTHER_ROWS, About, other_replacement, sae_names, same_saes, text_differs
from saelora.manifest import PartFile, part_file, read_json
from saelora.options import DataConfig
from saelora.records import JsonObject

# options that say how a part is run, not what is measured
_HOW = ("capability_batch", "saebench_batch", "saebench_python", "saebench_work", "batch_rows")
Kept = dict[str, PartFile | str]  # by part: its file, or why it cannot be read
_REMEDY = "--overwrite measures it anew, --out FOLDER keeps both"


class Asked:
    """The parts of one evaluation: a part's failure leaves the others, and one that is there is not measured again.

    Args:
        parts: in the order in which they are measured.
        folder: where their files are, or None.
        kept: what ``read_kept`` found of them.
    """

    def __init__(self, parts: list[str], folder: Path | None, console: Console, kept: Kept):
        self.parts, self.folder, self.console = parts, folder, console
        self.kept = dict(kept)
        self.failed: dict[str, str] = {}
        self._found: dict[str, JsonObject] = {}

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

    def take_kept(self, about: About) -> None:
        """Results that are there and were measured on what is loaded; the others join those that failed."""
        for part in [part for part in self.parts if part in self.kept and part not in self.failed]:
            file = self.kept[part]
            assert isinstance(file, PartFile)
            try:
                other_subject(self._file(part), file, about)
            except InputError as error:
                self.fail(part, error)
            else:
                self.took(part, file.result)
                self.console.say(f"{part} is measured already, in {self._file(part)}; --overwrite measures it anew")

    def todo(self) -> list[str]:
        """Parts that are neither there nor failed."""
        return [part for part in self.parts if part not in self.failed and part not in self._found]

    def took(self, part: str, found: JsonObject) -> None:
        """A part's result, as its file holds it."""
        self._found[part] = found

    def results(self) -> JsonObject:
        """All of them; that of the losses is the evaluation's own."""
        found = dict(self._found)
        return {**found.pop("loss", {}), **found}

    def fail(self, part: str, error: Exception) -> None:
        """Note why a part cannot be had."""
        self.failed[part] = on_one_line(error)
        if len(self.parts) > 1:
            self.console.say(f"part {part} is left out: {self.failed[part]}")

    def error(self, results: JsonObject) -> InputError:
        """What failed, a line each."""
        if len(self.parts) == 1:
            return InputError(self.failed[self.parts[0]])
        lines = [f"part {part} was not measured: {self.failed[part]}" for part in self.parts if part in self.failed]
        return SomeFailed(lines, results)

    def _file(self, part: str) -> Path:
        assert self.folder is not None
        return part_file(self.folder, part)


def read_kept(folder: Path, parts: Sequence[str]) -> Kept:
    """The files of parts that were measured."""
    found: Kept = {}
    for part in parts:
        path = part_file(folder, part)
        if path.exists():
            try:
                file = read_json(path)
                if not isinstance(file, dict) or not isinstance(file.get("result"), dict):
                    raise InputError(f"{path} holds no result of saelora evaluate")
                if part in EVALUATIONS:
                    EVALUATIONS[part].read(file["result"], path)
                found[part] = PartFile.read(file, path, f"measure it again with --parts {part} --overwrite")
            except InputError as error:
                found[part] = str(error)
    return found


def other_options(path: Path, file: PartFile | str, kind: type[Configuration] | None, config: Configuration) -> None:
    """Raise InputError where a part's file is no answer by its options alone, or cannot be read.

    Args:
        kind: the class of the part's own options; None: it has none.
    """
    if isinstance(file, str):
        raise InputError(f"{file}: {_REMEDY}")
    names = [] if kind is None else [name for name in kind.model_fields if name not in _HOW]
    if file.about is None or file.about.heldout is None:  # from before rows had a fingerprint
        names += [name for name in DataConfig.model_fields if name not in _HOW]
    then, now, fresh = file.options or {}, to_dict(config), to_dict(type(config)())
    for name in names:
        before = then.get(name, fresh[name])  # an option that was not there yet had its default
        if before != now[name]:
            raise InputError(f"{path} was measured with {name} {before}, now it is {now[name]}: {_REMEDY}")


def other_subject(path: Path, file: PartFile, about: About) -> None:
    """Raise InputError where a part was measured on another model, SAE, adapter, text, policy or precision."""
    then = file.about or About()
    differs, _ = text_differs(then, about)
    if not on_rows(str(file.part)):
        differs = [each for each in differs if not each.startswith(OTHER_ROWS)]
    if "saes" in then.model_fields_set and not same_saes(then.saes, about.saes):
        differs.append(f"another SAE ({sae_names(then.saes)}, not {sae_names(about.saes)})")
    if then.adapter and about.adapter and then.adapter != about.adapter:
        differs.append(f"another adapter ({then.adapter}, not {about.adapter})")
    if then.tuned_saes and about.tuned_saes and then.tuned_saes != about.tuned_saes:
        differs.append(f"another trained SAE ({then.tuned_saes}, not {about.tuned_saes})")
    if told := other_replacement(then, about):
        differs.append(told)
    if differs:
        raise InputError(f"{path} was measured on {' and '.join(differs)}: {_REMEDY}")
