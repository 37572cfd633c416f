"""Frozen SAEs and transcoders that lie on this machine: their files go with a run, into saes/ of its repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from saelora.errors import InputError
from saelora.identity import SAEId
from saelora.jobs.recorded import BESIDE
from saelora.manifest import Manifest
from saelora.named import exists
from saelora.saes.formats import find_saes, layer_file

_SETS = f"{BESIDE}transcoders/"


@dataclass(frozen=True)
class Beside:
    """What goes with a run.

    Args:
        files: by where each lies in the repository.
        told: what the run's files call an SAE, or a set of transcoders -> what the repository's do.
        sets: of each set of transcoders, as the run's files call it, how many of them go.
    """

    files: dict[str, Path]
    told: dict[str, str]
    sets: dict[str, int]


def saes_beside(manifest: Manifest) -> Beside:
    """Those whose files can be read anywhere.

    Raises:
        InputError: one is not what the run was made with.
    """
    found = Beside({}, {}, {})
    for ref in manifest.config.get("transcoders") or []:
        _add_set(found, manifest, ref)
    for sae in manifest.saes:
        ref = sae.ref or ""
        files = _files_of(ref) if ref in (manifest.config.get("sae") or []) else []
        if files:
            _add(found, sae, files, f"{BESIDE}{sae.hookpoint}")
    return found


def _add_set(found: Beside, manifest: Manifest, ref: Any) -> None:
    """The transcoders of one set that the run was made with, in the folders that they have in it."""
    if not isinstance(ref, str):
        return
    fixed = ref.partition("*")[0]
    base = (fixed if fixed == ref else fixed.rpartition("/")[0]).rstrip("/")
    if not base or not exists(base):
        return
    members = [sae for sae in manifest.saes if (sae.ref or "").startswith(f"{base}/")]
    files = [_files_of(sae.ref or "") for sae in members]
    if not members or not all(files):
        return
    place = _SETS + (Path(base).expanduser().absolute().name or "set")
    while place in found.told.values():
        place += "-"
    for sae, own in zip(members, files, strict=True):
        inside = PurePosixPath(str(sae.ref)).relative_to(PurePosixPath(base))
        folder = inside.parent if layer_file(inside.name) is not None else inside
        _add(found, sae, own, f"{place}/{folder}" if folder.parts else place)
    found.told[ref] = place
    found.sets[ref] = len(members)


def _add(found: Beside, sae: SAEId, files: list[Path], place: str) -> None:
    ref = str(sae.ref)
    _check_same(ref, sae)
    found.told[ref] = f"{place}/{Path(ref).name}" if layer_file(Path(ref).name) is not None else place
    found.files.update({f"{place.removeprefix('./')}/{file.name}": file for file in files})


def _files_of(ref: str) -> list[Path]:
    """The files of a local SAE that can be read anywhere; none of others."""
    root = Path(ref).expanduser()
    # a folder of the hub's cache may be one that the registry knows more of than its files say
    if not ref or not exists(ref) or "/snapshots/" in root.absolute().as_posix():
        return []
    if (layer := layer_file(root.name)) is not None:
        return [root, *(path for path in (root.parent / name for name in layer.beside) if path.is_file())]
    if not root.is_dir():
        return []
    found = [each for each in find_saes(path.name for path in root.iterdir() if path.is_file()) if each.folder == "."]
    unsafe = not found or any(".." in file or file.endswith(".pt") for file in found[0].files)
    return [] if unsafe else [root / file for file in found[0].files]


def _check_same(ref: str, then: SAEId) -> None:
    """Raise InputError where an SAE is not what the run was made with."""
    from saelora.saes.loading import load_sae

    now = load_sae(ref, hookpoint=then.hookpoint).fingerprint
    if now != then.fingerprint:
        raise InputError(
            f"SAE {ref} has changed since the run was made with it (fingerprint {then.fingerprint}, now {now}): bring "
            "that one back"
        )
