"""REF, as load and the commands beside it take it: a run's folder here or on the hub, and which kind of run it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelora.errors import InputError
from saelora.jobs.fetched import folder_of, is_on_hub
from saelora.manifest import MANIFEST, RESULTS, Manifest, read_json
from saelora.models.adapters import ADAPTER_CONFIG
from saelora.named import exists

SAE_CONFIG, TRAINING = "cfg.json", "training.json"


@dataclass(frozen=True)
class Run:
    """A finished run's folder.

    Args:
        ref: as it was given.
        manifest: of a run that adapted a model or trained SAEs inside it; None of one of train-sae.
        training: of the latter what ``TRAINING`` holds, and ``saes`` the folders of its SAEs.
    """

    ref: str
    folder: Path
    manifest: Manifest | None = None
    training: dict[str, Any] | None = None
    saes: tuple[Path, ...] = ()


def find_run(ref: str | Path) -> Run:
    """The run that REF names: a folder, or a hub repository owner/name[@revision][/folder/inside].

    Raises:
        InputError: there is none, or it holds something else.
    """
    from saelora.jobs.recorded import recorded_run

    ref = str(ref)
    folder = _folder(ref)
    if (folder / MANIFEST).exists():
        return Run(ref, folder, manifest=recorded_run(folder))
    found = _trained(ref, folder)
    if found is not None:
        return found
    if (folder / ADAPTER_CONFIG).exists():
        raise InputError(
            f"{ref} holds an adapter without {MANIFEST}, so that its SAEs and token policy are unknown: load it with "
            "saelora.load_adapter and splice by hand (see the guide), or give the folder that saelora adapt left"
        )
    raise InputError(
        f"{ref} is no run: expected a folder (or hub repository) with {MANIFEST}, as saelora adapt and finetune-sae "
        f"leave it, or one of saelora train-sae"
    )


def _folder(ref: str) -> Path:
    if not ref.strip():
        raise InputError("no run given: name the folder of one, e.g. saelora-demo, or a hub repository owner/name")
    if exists(ref):
        folder = Path(ref).expanduser()
        if not folder.is_dir():
            raise InputError(f"{ref} is a file: name the folder of a run")
        return folder
    if not is_on_hub(ref):
        raise InputError(f"{ref[:200]} does not exist: expected the folder of a run, or a hub repository owner/name")
    return folder_of(ref)


def _trained(ref: str, folder: Path) -> Run | None:
    """A run of train-sae, or one SAE of it; None where this is neither."""
    root = next((each for each in (folder, *list(folder.parents)[:2]) if (each / TRAINING).is_file()), None)
    if root is None:
        return None
    from saelora.jobs.sae_folder import TrainingFile

    path = root / TRAINING
    file = TrainingFile.read(read_json(path), path, "bring it back as its run left it, or train anew")
    if (folder / SAE_CONFIG).is_file():
        saes = [folder]
    else:
        saes = [each for each in (root / name for name in file.saes) if (each / SAE_CONFIG).is_file()]
        saes = [each for each in saes if folder == root or folder in each.parents]
    if not saes:
        raise InputError(f"{ref} is a run of train-sae whose SAEs are not there: expected {SAE_CONFIG} in {folder}")
    hookpoints = [_name_of(root, each, file.saes) for each in saes]
    if len(set(hookpoints)) < len(saes):
        raise InputError(
            f"{ref} holds {len(saes)} SAEs, several of them for {hookpoints[0]}: name one, such as "
            f"{Path(ref) / saes[0].relative_to(folder)}"
        )
    return Run(ref, folder, training=dict(file.config), saes=tuple(saes))


def _name_of(root: Path, folder: Path, names: list[str]) -> str:
    """The hookpoint that an SAE's name begins with."""
    return (names[0] if folder == root and names else str(folder.relative_to(root))).partition("/")[0]


def recorded_about(folder: Path) -> dict[str, Any]:
    """What the results beside an SAE say that it was measured on; nothing where there are none."""
    path = folder / RESULTS
    found = read_json(path).get("about") if path.is_file() else None
    return found if isinstance(found, dict) else {}
