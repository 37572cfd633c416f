"""A run's folder -> what the page tells of it. Reads JSON only: no model, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from saelora.errors import InputError
from saelora.evals.loss_result import LossResult, RunResult
from saelora.evals.registry import EVALUATIONS
from saelora.identity import OTHER_ROWS, About, kind_of, other_replacement, sae_names, same_saes, text_differs
from saelora.manifest import MANIFEST, RESULTS, Manifest, PartFile, part_file, read_json
from saelora.records import JsonObject
from saelora.reporting.counted import Counted

R = TypeVar("R")


@dataclass(frozen=True)
class Run:
    """One finished ``saelora adapt`` with the parts of its evaluation so far."""

    label: str
    folder: Path
    manifest: Manifest
    results: RunResult
    parts: dict[str, PartFile]  # by name, "loss" (measured again) among them
    found: dict[str, object] = field(default_factory=dict)  # by name, the results of evaluations
    again: LossResult | None = None  # the losses, measured again
    counted: Counted | None = None  # its latents, where saelora open has counted them

    @property
    def about(self) -> About:
        """What its result was measured on; without held-out rows where an older version did not record them."""
        own = About(model=self.manifest.model, saes=self.manifest.saes, token_policy=self.manifest.token_policy)
        about = self.results.about or About()
        return own.having(**{name: getattr(about, name) for name in about.model_fields_set})

    def result(self, kind: type[R]) -> R | None:
        """The result of this kind, None where it was not measured."""
        return next((each for each in self.found.values() if isinstance(each, kind)), None)


def read_runs(folders: Sequence[str | Path], names: Sequence[str | None] | None = None) -> list[Run]:
    """The runs in these folders, each with a name of its own.

    Args:
        names: of each, None where its folder's name tells.

    Raises:
        InputError: none is given, one is given twice, or one is no finished run.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("no run given: name the folder of a saelora adapt run, as in saelora report DIR")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{path} is named twice: name each run once")
        seen.add(path.resolve())
    told = zip(paths, names or [None] * len(paths), _labels(paths), strict=True)
    return [read_run(path, name or label) for path, name, label in told]


def read_run(folder: Path, label: str) -> Run:
    """One run.

    Raises:
        InputError: a file is missing or damaged, or is of another kind of run, or a result is not as saelora writes it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the output folder of a saelora adapt run")
    manifest, results = _mapping(folder / MANIFEST), _mapping(folder / RESULTS)
    missing = [key for key in ("model", "saes", "config") if key not in manifest]
    if missing or "ce_base" not in results:
        lack = f"{MANIFEST} lacks {', '.join(missing)}" if missing else f"{RESULTS} has no ce_base"
        raise InputError(f"{folder} is a run of another kind ({lack}): name the output folder of a saelora adapt run")
    remedy = "bring it back as the run left it, or run it anew with --overwrite"
    own = Manifest.read(manifest, folder / MANIFEST, remedy), RunResult.read(results, folder / RESULTS, remedy)
    parts: dict[str, PartFile] = {}
    found: dict[str, object] = {}
    again = None
    for name in ("loss", *EVALUATIONS):
        path = part_file(folder / "evals", name)
        if not path.exists():
            continue
        file, anew = _mapping(path), f"measure it again with --parts {name} --overwrite"
        if not isinstance(file.get("result"), dict):
            raise InputError(f"{path} has no result: {anew}")
        parts[name] = PartFile.read(file, path, anew)
        if name in EVALUATIONS:
            found[name] = EVALUATIONS[name].read(parts[name].result, path)
        elif "ce_base" in parts[name].result:
            again = LossResult.read(parts[name].result, path, anew)
    return Run(label, folder, *own, parts, found, again)


def _mapping(path: Path) -> JsonObject:
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {type(found).__name__}, expected an object: is it a file of saelora?")
    return dict(found)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(each[-depth:]) for each in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def differences(run: Run, name: str) -> list[str]:
    """What a part was measured on that is not what the run's result was, rows aside; empty where all is the same."""
    about, own = run.parts[name].about or About(), run.about
    told = [each for each in text_differs(about, own)[0] if not each.startswith(OTHER_ROWS)]
    if "saes" in about.model_fields_set and not same_saes(about.saes, run.manifest.saes):
        told.append(f"{kind_of(*about.saes).of(len(about.saes))} {sae_names(about.saes)}")
    if about.adapter and own.adapter and about.adapter != own.adapter:
        told.append(f"another adapter ({about.adapter})")
    return told


def apart(run: Run, name: str) -> str | None:
    """Why a part's figures do not compare with the run's result, in words: other rows, transcoders put in otherwise."""
    about = run.parts[name].about
    if about is None:
        return None
    evaluation = EVALUATIONS.get(name)
    told = [other_rows(about, run.about)] if evaluation is None or evaluation.on_rows else []
    told += [other_replacement(about, run.about)] if evaluation is None or not evaluation.of_transcoders else []
    return " and ".join(each for each in told if each) or None


def other_rows(about: About, other: About) -> str | None:
    """That two were measured on different held-out rows, in words; None where they were not, or it is not known."""
    return next((each for each in text_differs(about, other)[0] if each.startswith(OTHER_ROWS)), None)
