"""From parts to a frozen SAELens object: build, check the weights, fingerprint, describe."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelora.errors import InputError
from saelora.saes.readers.common import Parts, one_line

_NOT_METADATA = ("d_in", "d_sae", "dtype", "device", "metadata", "architecture")


def build_sae(parts: Parts, folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    """The SAELens SAE made of `parts`, on the CPU in `dtype`.

    SAELens' own `load_from_disk` does the building, so older configurations migrate exactly as there.

    Raises:
        InputError: a transcoder, weights that do not fit the configuration, or a normalisation that was not folded.
    """
    from sae_lens.saes import SAE

    refuse_transcoder(parts.cfg, name)
    # copies, because safetensors maps the file and a later write to it would change the SAE
    weights = {key: tensor.to(dtype, copy=True).contiguous() for key, tensor in parts.weights.items()}
    cfg = {**parts.cfg, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    try:
        sae = SAE.load_from_disk(folder, converter=lambda path, device, cfg_overrides: (cfg, weights))
    except (AttributeError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{name}: weights and configuration do not make an SAE ({one_line(error)})") from error
    _fold_normalisation(sae, folder, name)
    return sae


def refuse_transcoder(cfg: dict[str, Any], name: str) -> None:
    """Raise InputError where a configuration belongs to an SAE with a separate output hook."""
    metadata = cfg.get("metadata") or {}
    hook_in = cfg.get("hook_name") or metadata.get("hook_name")
    hook_out = cfg.get("hook_name_out") or metadata.get("hook_name_out")
    architecture = str(cfg.get("architecture"))
    if "transcoder" in architecture or (hook_out is not None and hook_out != hook_in):
        where = f"{hook_in} to {hook_out}" if hook_out else f"architecture {architecture}"
        raise InputError(
            f"{name} is a transcoder ({where}): only SAEs, which rebuild their own input, can be spliced in"
        )


def _fold_normalisation(sae: Any, folder: Path, name: str) -> None:
    """Fold the input scaling that SAELens estimates in training and folds only when training ends.

    SAELens' disk loader leaves such a checkpoint unscaled without a word, which ruins its reconstructions.
    """
    kind = sae.cfg.normalize_activations
    if kind not in ("expected_average_only_in", "covariance_whitening"):
        return
    from sae_lens.training.activation_scaler import ActivationScaler

    scaler, path = ActivationScaler(), folder / "activation_scaler.json"
    if path.is_file():
        try:
            scaler.load(path)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} cannot be read ({one_line(error)}): expected SAELens' activation scaler"
            ) from error
    if kind == "expected_average_only_in" and scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(float(scaler.scaling_factor))
    elif kind == "covariance_whitening" and scaler.whitening is not None:
        whitening = scaler.whitening
        sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
    else:
        raise InputError(
            f"{name} was trained with normalize_activations={kind!r}, and its scaling is neither folded into the "
            f"weights nor in {path.name}: use the save made when training ended, or write "
            '{"scaling_factor": sqrt(d_in) / mean norm} to that file'
        )


def check_finite(sae: nn.Module, name: str) -> None:
    """Raise InputError where a weight is NaN or infinite."""
    for key, tensor in sae.state_dict().items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InputError(
                f"{name}: {bad} of {tensor.numel()} values of {key} are NaN or infinite in {tensor.dtype}: "
                "the file is damaged, training diverged, or the dtype is too narrow"
            )


def fingerprint(sae: nn.Module) -> str:
    """16 hex digits of the sha256 over names, shapes and float32 values of all weights, sorted by name.

    Equal weights give equal fingerprints whatever file format or layout they came from.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(sae.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{list(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def freeze(sae: Any, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """Move, set to evaluation, stop parameter gradients, and take merged heads at hook_z: [..., n_heads * d_head]."""
    if hasattr(sae, "turn_off_forward_pass_hook_z_reshaping"):
        sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        return sae.to(device=torch.device(device), dtype=dtype).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the SAE cannot be put on device {device!s}: {one_line(error)}") from error


def describe(sae: Any) -> dict[str, Any]:
    """What the configuration says besides sizes, as plain JSON data, None left out."""
    cfg = sae.cfg.to_dict()
    flat = {**{k: v for k, v in cfg.items() if k not in _NOT_METADATA}, **cfg["metadata"]}
    return {k: json.loads(json.dumps(v, default=str)) for k, v in sorted(flat.items()) if v is not None}
