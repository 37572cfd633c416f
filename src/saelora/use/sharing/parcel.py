"""What of a run's folder is a result and goes to others: files as they are, or with local paths replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelora.errors import InputError
from saelora.identity import SAEId
from saelora.manifest import MANIFEST, RESULTS, Manifest, read_json
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.named import exists
from saelora.saes.formats import LAYOUTS
from saelora.use.reference import SAE_CONFIG, TRAINING, Run
from saelora.use.sharing.paths import Names, is_path, strings_in
from saelora.use.sharing.saes import Beside, saes_beside

CARD = "README.md"
_ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
_ROOT = (RESULTS, "config.yaml", "metrics.jsonl", "learning_curve.png", "report.html")
OWNED = (MANIFEST, TRAINING, *_ROOT, *_ADAPTER, "evals/", "saes/", "sae/", "layers.", "cfg.json", "sae_weights.")
_TEXT = (".json", ".jsonl", ".yaml", ".md", ".html")
_SAELENS = next((*each.required, *each.optional) for each in LAYOUTS if each.format == "saelens")
_ABOUT = ("config", "options", "about", "model", "saes", "base_model_name_or_path")  # entries that may hold paths
_LONG = 1000  # characters: what is longer is no path
_KEPT = (DEFAULT_MODEL, DEFAULT_DATA, DEFAULT_SAE)
_REFS = ("model", "data", "start")  # options that may be paths; sae is a list


@dataclass(frozen=True)
class File:
    """A file of the repository.

    Args:
        content: its bytes, or the file on this disk that holds them.
    """

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Parcel:
    """What goes, without its card.

    Args:
        names: local paths and what stands for them.
        manifest, training: of the run, as they go.
        left: files of the folder that stay, by their paths in it.
        notes: what whoever loads it needs to know.
    """

    files: list[File]
    left: list[str]
    notes: list[str]
    names: Names
    manifest: Manifest | None = None
    training: dict[str, Any] | None = None


def packed(run: Run, repo: str, model: str | None, saes: bool = True) -> Parcel:
    """A finished run as it is to lie in a repository.

    Args:
        model: where others find the run's model, in place of a local path.
        saes: whether frozen SAEs that lie on this machine go too.

    Raises:
        InputError: the run is not finished, or a file of it is missing.
    """
    return _of_training(run, model) if run.manifest is None else _of_run(run, run.manifest, model, saes)


def _of_run(run: Run, manifest: Manifest, model: str | None, saes: bool) -> Parcel:
    folder = run.folder
    wanted = [name for name in _ROOT if (folder / name).is_file()]
    if RESULTS not in wanted:
        raise InputError(
            f"{run.ref} is not finished: it has no {RESULTS}, which a run writes last; go on with --resume"
        )
    if manifest.adapter is not None:
        wanted += _ADAPTER
    wanted += sorted(f"evals/{each.name}" for each in (folder / "evals").glob("*.json"))
    for tuned in manifest.tuned_saes:
        inside = [name for name in _SAELENS if (folder / tuned.folder / name).is_file()]
        wanted += [(Path(tuned.folder) / name).as_posix() for name in inside or _SAELENS[:2]]
    found = saes_beside(manifest) if saes else Beside({}, {}, {})
    paths = [*_paths_in(folder, wanted), *_local_refs(manifest.config)]
    paths += [path for file in found.files.values() for path in _paths_of(file)]
    names = Names({**_model_told(manifest.model.ref, model), **found.told}, paths, folder)
    beside = [File(path, _content(file, names)) for path, file in found.files.items()]
    shown = _shown(manifest, names, found.told)
    notes = _notes(manifest, shown, found)
    files = [*_read(run, wanted, names), *beside, File(MANIFEST, _as_file(shown.to_json(), names))]
    return Parcel(_sorted(files), _left(folder, [*wanted, MANIFEST, CARD]), notes, names, shown)


def _of_training(run: Run, model: str | None) -> Parcel:
    """A run of train-sae, or one SAE of it."""
    folder = run.folder
    if not (folder / TRAINING).is_file():
        raise InputError(f"{run.ref} is one SAE of a run: give the run's folder, the one with {TRAINING}")
    wanted = [name for name in (TRAINING, *_ROOT) if (folder / name).is_file()]
    for sae in run.saes:
        inside = sae.relative_to(folder)
        names_there = [name for name in (*_SAELENS, RESULTS, CARD) if (sae / name).is_file()]
        wanted += [(inside / name).as_posix() for name in names_there]
    wanted = [name for name in dict.fromkeys(wanted) if name != CARD]
    then = dict(run.training or {})
    paths = [*_paths_in(folder, wanted), *_local_refs(then)]
    names = Names(_model_told(str(then.get("model")), model), paths, folder)
    own = read_json(folder / TRAINING)
    own["config"] = training = {
        key: names.of(value) if key in _REFS and value else value for key, value in then.items()
    }
    files = [each for each in _read(run, wanted, names) if each.path != TRAINING]
    files.append(File(TRAINING, _as_file(own, names)))
    told = _model_note(str(then.get("model")), str(training.get("model")))
    return Parcel(_sorted(files), _left(folder, [*wanted, CARD]), told, names, training=training)


def _model_told(ref: str, model: str | None) -> dict[str, str]:
    """What stands for the model, where one was given; only for a path, since a hub's name says which model it is."""
    if model is not None and not is_path(ref) and ref not in _local_refs({"model": ref}):
        raise InputError(f"the run's model is {ref}, which others find by that name: leave out --model {model}")
    return {} if model is None else {ref: model}


def _local_refs(config: Mapping[str, Any]) -> list[str]:
    """Options that name something on this machine, though they might be a hub's names too."""
    given = [config.get("model"), config.get("data"), config.get("start")]
    given += [*(config.get("sae") or []), *(config.get("transcoders") or [])]
    return [ref for ref in given if isinstance(ref, str) and ref not in _KEPT and exists(ref)]


def _model_note(ref: str, shown: str) -> list[str]:
    if not is_path(shown):
        return []
    return [
        f"Its model, {ref}, lies on this machine: say --model OWNER/NAME where it is on the hub too, or whoever loads "
        "this has to give model=FOLDER."
    ]


def _shown(manifest: Manifest, names: Names, told: dict[str, str]) -> Manifest:
    """The manifest as others read it."""
    config = dict(manifest.config)
    for key in _REFS:
        if config.get(key):
            config[key] = names.of(str(config[key]))
    for key in ("sae", "transcoders"):
        config[key] = [told.get(ref) or names.of(ref) for ref in config.get(key) or []]
    where = {sae.ref: sae.hookpoint for sae in manifest.saes}
    if told and all(ref in where for ref in manifest.config["sae"]):  # not from the names of folders, which are others
        config["hookpoint"] = [where[ref] for ref in manifest.config["sae"]]
    if config.get("out"):
        config["out"] = Path(str(config["out"])).name
    saes = [_sae_shown(sae, names, told) for sae in manifest.saes]
    model = manifest.model.model_copy(update={"ref": names.of(manifest.model.ref)})
    return manifest.model_copy(update={"config": config, "model": model, "saes": saes})


def _sae_shown(sae: SAEId, names: Names, told: dict[str, str]) -> SAEId:
    ref = sae.ref or ""
    return sae.model_copy(update={"ref": told.get(ref) or names.of(ref)}) if ref else sae


def _notes(before: Manifest, after: Manifest, found: Beside) -> list[str]:
    notes = _model_note(before.model.ref, after.model.ref)
    for ref, n in found.sets.items():
        inside = f"{found.told[ref].removeprefix('./')}/"
        size = sum(file.stat().st_size for path, file in found.files.items() if path.startswith(inside))
        notes.append(
            f"{n} transcoders of {ref} lie on this machine, so that their files go too ({size / 1e6:,.1f} MB, in "
            f"{inside}); --no-saes leaves them out."
        )
    local = _local_refs({"transcoders": before.config.get("transcoders")})
    stay = [ref for ref in local if ref not in found.told]
    notes += [
        f"Transcoders {ref} lie on this machine and do not go: whoever loads this has to give transcoders=[…]."
        for ref in stay
    ]
    alone = before.config.get("sae") or []
    for old, new in zip(before.saes, after.saes, strict=True):
        if old.ref not in alone:
            continue  # of a set
        if old.ref in found.told:
            notes.append(f"SAE {old.ref} lies on this machine, so that its files go too.")
        elif new.ref and is_path(new.ref):
            notes.append(f"SAE {old.ref} lies on this machine and does not go: whoever loads this has to give sae=[…].")
    return notes


def _paths_in(folder: Path, wanted: list[str]) -> list[str]:
    """Absolute paths in what the run's files say of options, model and SAEs."""
    return [path for name in [MANIFEST, *wanted] for path in _paths_of(folder / name)]


def _paths_of(path: Path) -> list[str]:
    if path.suffix != ".json" or not path.is_file():
        return []
    content = read_json(path)
    if not isinstance(content, dict):
        return []
    said = content if path.name == SAE_CONFIG else [content.get(key) for key in _ABOUT]
    return [text for text in strings_in(said) if is_path(text) and len(text) < _LONG]


def _read(run: Run, wanted: list[str], names: Names) -> Iterator[File]:
    for name in wanted:
        path = run.folder / name
        if not path.is_file():
            raise InputError(f"{run.ref} lacks {name}: bring it back as its run left it, or run it anew")
        yield File(name, _content(path, names))


def _content(path: Path, names: Names) -> bytes | Path:
    return names.in_text(path.read_bytes()) if path.suffix in _TEXT else path


def _sorted(files: list[File]) -> list[File]:
    return sorted(files, key=lambda each: each.path)


def _as_file(value: Any, names: Names) -> bytes:
    return names.in_text((json.dumps(value, indent=2) + "\n").encode())


def _left(folder: Path, gone: list[str]) -> list[str]:
    every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in every if path not in gone]
