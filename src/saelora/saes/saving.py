"""SAEs written in SAELens's format."""

from pathlib import Path
from typing import Any

from saelora.files import whole_files

SAE_FILES = ("sae_weights.safetensors", "cfg.json")


def save_sae(sae: Any, folder: Path) -> None:
    """Write an inference SAE of SAELens's, that its ``SAE.load_from_disk`` reads: both files, or neither.

    Raises:
        InputError: the disk is full or not writable.
    """
    with whole_files(folder, SAE_FILES) as part:
        sae.save_model(part)
