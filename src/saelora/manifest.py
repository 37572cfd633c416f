"""saelora.json, results.json and the card: what a run leaves beside its PEFT adapter."""

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora.errors import InputError
from saelora.files import write_whole
from saelora.identity import About, ModelId, PolicyRecord, SAEId
from saelora.locks import locked
from saelora.records import JsonObject, Number, Record

if TYPE_CHECKING:
    from saelora.assemble import Assembled
    from saelora.models.loading import LoadedModel

MANIFEST = "saelora.json"
RESULTS = "results.json"
# of an SAE's configuration, what its fingerprint, which is of weights alone, does not see
_SETTINGS = ("k", "activation_fn", "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm")
_TRANSCODER_SETTINGS = ("activation", "skip", "reads")
_VERSIONED = ("saelora", "torch", "transformers", "peft", "sae-lens", "safetensors", "datasets")


class TrainedSAE(Record):
    """An SAE that a run trained: where it sat, where it lies in the run's folder, and its weights' fingerprint."""

    hookpoint: str
    folder: str
    fingerprint: str


class Environment(Record):
    """Versions and hardware."""

    python: str | None = None
    versions: dict[str, str | None] = {}
    commit: str | None = None
    platform: str | None = None
    device: str | None = None
    cpu_count: int | None = None
    torch_threads: int | None = None


class Manifest(Record):
    """What a run's saelora.json holds.

    Args:
        adapter: its fingerprint, None where none was trained.
        config: the run's options.
        metrics: the numbers of its results.
    """

    model: ModelId
    saes: list[SAEId]
    token_policy: PolicyRecord | None = None
    adapter: str | None = None
    method: str = "lora"
    tuned_saes: list[TrainedSAE] = []
    config: JsonObject
    n_documents_trained: int | None = None
    environment: Environment | None = None
    metrics: dict[str, Number | None] = {}


class PartFile(Record):
    """A part of an evaluation, with what it was measured on and how."""

    part: str | None = None
    about: About | None = None
    options: JsonObject | None = None
    environment: Environment | None = None
    seconds: Number | None = None
    result: JsonObject


def _plain(value: Any) -> JsonObject:
    if isinstance(value, Record):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} has no JSON")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically: the file is whole or as it was before.

    Args:
        indent: None writes one line, a quarter of the size where there are many short lists.

    Raises:
        InputError: the disk is full or not writable.
    """
    write_whole(path, (json.dumps(value, indent=indent, default=_plain) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON that this project wrote; what it holds is for ``Record.read`` to see.

    Raises:
        InputError: no such file, or it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: is {path.parent} the output folder of a finished saelora run?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def describe(assembled: "Assembled") -> About:
    """What identifies model, SAEs and token policy, and how transcoders were put in."""
    saes = [
        SAEId(
            ref=sae.ref,
            hookpoint=str(hookpoint),
            format=sae.format,
            architecture=sae.architecture,
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            revision=sae.revision,
            fingerprint=sae.fingerprint,
            settings={key: value for key, value in sae.metadata.items() if key in (*_SETTINGS, *_TRANSCODER_SETTINGS)},
        )
        for hookpoint, sae in assembled.saes.items()
    ]
    about = About(model=describe_model(assembled.loaded), saes=saes, token_policy=assembled.token_mask.record())
    replacement = assembled.replacement.record()
    return about if replacement is None else about.having(replacement=replacement)


def describe_model(loaded: "LoadedModel") -> ModelId:
    """What identifies a model."""
    return ModelId(
        ref=loaded.ref,
        revision=loaded.revision,
        fingerprint=loaded.fingerprint,
        model_type=loaded.model.config.model_type,
        dtype=str(loaded.dtype).removeprefix("torch."),
    )


def version_of(name: str) -> str | None:
    """The version of an installed package; None where it is not installed, as sae-lens need not be."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment() -> Environment:
    """Versions and hardware."""
    import torch  # here, because a report reads manifests and must not wait seconds for it

    versions: dict[str, str | None] = {name: version_of(name) for name in _VERSIONED}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return Environment(
        python=platform.python_version(),
        versions=versions,
        commit=source_commit(),
        platform=platform.platform(),
        device=device,
        cpu_count=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
    )


def source_commit() -> str | None:
    """The commit of this package's source: of the checkout it runs from, or the one that pip installed it from."""
    if recorded := metadata.distribution("saelora").read_text("direct_url.json"):
        commit = json.loads(recorded).get("vcs_info", {}).get("commit_id")
        if commit:
            return str(commit)
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def part_file(folder: Path, part: str) -> Path:
    """Where a part of an evaluation is written."""
    return folder / f"{part}.json"


def check_part_folder(folder: Path) -> None:
    """Raise InputError where the place of a folder of parts is taken."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --out (a folder, or a name that ends in .json)")


def write_part(folder: Path, part: PartFile) -> None:
    """Write a part of an evaluation."""
    with locked(folder, shared=True, wait=lambda _: None):  # others may be writing other parts
        write_json(part_file(folder, str(part.part)), part, indent=None)


def check_writable(path: Path) -> None:
    """Raise InputError where a path that may not be there yet could not be made or written to."""
    try:
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    except OSError as error:
        raise InputError(f"{str(path)[:200]} cannot be written to: {error.strerror}; choose another --out") from None
    if there != path.absolute() and not there.is_dir():
        raise InputError(f"{path} cannot be written to: {there} is a file; choose another --out")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise InputError(f"{path} cannot be written to: no permission for {there}; choose another --out")


def check_room(folder: Path, needed: int) -> None:
    """Raise InputError where ``folder``'s disk has less than ``needed`` bytes, or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}; choose another --out") from error
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free, this run needs {needed / 1e9:.1f} GB: free some space"
        )
