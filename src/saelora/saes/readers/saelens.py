"""SAELens' own format, version 6 and older: `cfg.json` + `sae_weights.safetensors`."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from saelora.errors import InputError
from saelora.saes.readers.common import Parts, one_line, read_json


def read(folder: Path, name: str) -> Parts:
    """Read through SAELens' disk loader; older configurations are migrated when the SAE is built.

    Raises:
        InputError: unreadable files, or an architecture that SAELens cannot run.
    """
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader
    from sae_lens.registry import SAE_CLASS_REGISTRY

    cfg_path, weights_path = folder / "cfg.json", folder / "sae_weights.safetensors"
    cfg = read_json(cfg_path)
    architecture = cfg.get("architecture", "standard")
    if architecture not in SAE_CLASS_REGISTRY:
        known = ", ".join(sorted(SAE_CLASS_REGISTRY))
        raise InputError(
            f"{cfg_path} has architecture {architecture!r}, expected one of {known}: "
            "a training checkpoint must first be exported with SAELens' save_inference_model"
        )
    try:
        with safe_open(weights_path, framework="pt", device="cpu") as file:
            wide = any(file.get_slice(key).get_dtype() == "F64" for key in file.keys())  # noqa: SIM118
        cfg, weights = sae_lens_disk_loader(folder, "cpu", {"dtype": "float64" if wide else "float32"})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{weights_path} cannot be read as safetensors ({one_line(error)}): "
            "it is truncated or corrupt, get it again"
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{folder} is not an SAE that SAELens can load: {one_line(error)}") from error
    return Parts(cfg, weights)
