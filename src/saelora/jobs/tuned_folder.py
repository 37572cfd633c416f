"""What training leaves to load again: a PEFT adapter, and SAEs in SAELens's native format."""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from saelora.assemble import Assembled
from saelora.errors import InputError
from saelora.files import whole_files
from saelora.models.hookpoints import Hookpoint, parse_hookpoint
from saelora.saes.build import fingerprint
from saelora.saes.loading import LoadedSAE, load_sae

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
SAE_FILES = ("sae_weights.safetensors", "cfg.json")


def save_adapter(model: Any, folder: Path, name: str | None = None) -> None:
    """Write an adapter in PEFT's format: both files, or neither.

    Args:
        name: of the adapter, where the model has several.
    """
    with whole_files(folder, ADAPTER_FILES) as part:
        model.save_pretrained(part, selected_adapters=None if name is None else [name])
        for file in ADAPTER_FILES if name is not None else ():
            (part / name / file).replace(part / file)


def save_saes(
    saes: dict[Hookpoint, Any], assembled: Assembled, about: dict[str, Any], folder: Path, below: str
) -> list[dict[str, Any]]:
    """Write trained SAEs: one into ``folder/below``, several into a folder of its hookpoint's name each in there.

    Args:
        about: how they were trained; goes into each SAE's metadata, with the SAE that it was made from.
        below: a folder's name, or "" for ``folder`` itself.

    Returns:
        For the manifest: hookpoint, folder (relative) and fingerprint of each.
    """
    saved = []
    for hookpoint, sae in saes.items():
        came = assembled.saes[hookpoint]
        sae.cfg.metadata.saelora_tuned = {
            "version": importlib.metadata.version("saelora"),
            "from": {"ref": came.ref, "fingerprint": came.fingerprint},
            **about,
        }
        relative = Path(below) if len(saes) == 1 else Path(below) / str(hookpoint)
        save_sae(sae, folder / relative)
        saved.append({"hookpoint": str(hookpoint), "folder": str(relative), "fingerprint": fingerprint(sae)})
    return saved


def save_sae(sae: Any, folder: Path) -> None:
    """Write an SAE in SAELens's format: both files, or neither."""
    with whole_files(folder, SAE_FILES) as part:
        sae.save_model(part)


def load_tuned_saes(
    folder: Path, recorded: dict[str, Any], device: torch.device, *, forced: bool = False
) -> dict[Hookpoint, LoadedSAE]:
    """The SAEs that a run trained, by its manifest; none where it left them as they were.

    Raises:
        InputError: one is missing or damaged, or is not the one that the run ended with and that is not ``forced``.
    """
    found = {}
    for entry in recorded.get("tuned_saes", []):
        hookpoint = parse_hookpoint(entry["hookpoint"])
        loaded = load_sae(str(folder / entry["folder"]), hookpoint=hookpoint, device=device)
        if loaded.fingerprint != entry["fingerprint"] and not forced:
            raise InputError(
                f"SAE {folder / entry['folder']} has changed since its run ended (fingerprint {entry['fingerprint']}, "
                f"now {loaded.fingerprint}): evaluate it as any other, with --sae and without --adapter, or say "
                "--other-weights"
            )
        found[hookpoint] = loaded
    return found
