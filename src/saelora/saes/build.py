"""From parts to a frozen SAE: build, check the weights, fingerprint, describe."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject
from saelora.saes.inference import CLASSES, inference_sae
from saelora.saes.readers.common import Parts
from saelora.saes.saelens import FIRST_WITH_METADATA, need_saelens

# what reading values of the wrong kind raises
_UNUSABLE = (AttributeError, KeyError, RuntimeError, ValueError, TypeError)
_NOT_METADATA = ("d_in", "d_sae", "dtype", "device", "metadata", "architecture")
# what SAELens 6 takes from older configurations, and the entries that it has other names for
_ORIGIN = frozenset(
    word
    for line in (
        "model_name hook_name model_class_name hook_head_index model_from_pretrained_kwargs prepend_bos",
        "exclude_special_tokens neuronpedia_id context_size seqpos_slice dataset_path sae_lens_version",
        "sae_lens_training_version hook_name_out hook_head_index_out hf_hook_name hf_hook_name_out",
    )
    for word in line.split()
)
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def build_sae(parts: Parts, folder: Path, name: str, dtype: torch.dtype, scale: float | None = None) -> nn.Module:
    """The SAE made of `parts`, on the CPU in `dtype`; `scale` is its factor on activations, where known.

    Architectures other than `inference.CLASSES` are built by SAELens.

    Raises:
        InputError: a transcoder, weights that do not fit the configuration, or a normalisation that was not folded.
    """
    refuse_transcoder(parts.cfg, name)
    # copies, because safetensors maps the file and a later write to it would change the SAE
    weights = {key: tensor.to(dtype, copy=True).contiguous() for key, tensor in parts.weights.items()}
    cfg = {**parts.cfg, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    try:
        cfg = migrated(cfg)
        sae = inference_sae(cfg, weights) if cfg["architecture"] in CLASSES else _by_saelens(cfg, weights, name)
    except _UNUSABLE as error:
        raise InputError(f"{name}: weights and configuration do not make an SAE ({on_one_line(error)})") from error
    _fold_normalisation(sae, folder, name, scale)
    return sae


def migrated(cfg: JsonObject) -> JsonObject:
    """A configuration as SAELens 6 writes it, of one that 6 or an earlier version wrote; done as SAELens does."""
    version = cfg.get("sae_lens_version") or cfg.get("metadata", {}).get("sae_lens_version")
    if version and Version(version) >= FIRST_WITH_METADATA:
        return cfg
    old = {_RENAMED.get(key, key): value for key, value in cfg.items()}
    default: JsonObject = {"prepend_bos": True, "apply_b_dec_to_input": True, "sae_lens_training_version": None}
    default |= {"architecture": "standard", "neuronpedia_id": None, "device": "cpu"}
    default["reshape_activations"] = "hook_z" if "hook_z" in old.get("hook_name", "") else "none"
    new = old | {key: value for key, value in default.items() if key not in old}
    options = new.get("activation_fn_kwargs", {})
    if new.get("activation_fn") == "topk" and options.get("k") is not None:
        new["architecture"] = "topk"
    if new["architecture"] == "topk" and "activation_fn_kwargs" in new:
        new["k"] = options["k"]
    scaled = new.get("normalize_activations")
    if scaled is None or isinstance(scaled, bool):
        new["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    return {**new, "metadata": {key: value for key, value in new.items() if key in _ORIGIN}}


def _by_saelens(cfg: JsonObject, weights: dict[str, Tensor], name: str) -> nn.Module:
    """An SAE of an architecture that SAELens alone has."""
    need_saelens(f"{name} is a {cfg['architecture']} SAE: it")
    from sae_lens.saes import SAE

    sae: nn.Module = SAE.load_from_disk("", converter=lambda path, device, cfg_overrides: (cfg, weights))
    return sae


def refuse_transcoder(cfg: JsonObject, name: str) -> None:
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


def _fold_normalisation(sae: Any, folder: Path, name: str, scale: float | None) -> None:
    """Fold the input scaling that SAELens estimates in training and folds only when training ends.

    SAELens' disk loader leaves such a checkpoint unscaled without a word, which ruins its reconstructions.
    """
    kind = sae.cfg.normalize_activations
    if kind not in ("expected_average_only_in", "covariance_whitening"):
        return
    path = folder / "activation_scaler.json"
    try:
        if _folded(sae, path, scale):
            return
    except (*_UNUSABLE, OSError, SafetensorError) as error:
        raise InputError(f"{path} is no activation scaler of SAELens for this SAE ({on_one_line(error)})") from error
    remedy = '{"scaling_factor": sqrt(d_in) / mean norm}' if kind == "expected_average_only_in" else "its whitening"
    raise InputError(
        f"{name} was trained with normalize_activations={kind!r}, and its scaling is neither folded into the "
        f"weights nor in {path.name}: use the save made when training ended, or write {remedy} to that file"
    )


def _folded(sae: Any, path: Path, scale: float | None) -> bool:
    """Fold what SAELens' file holds, or else `scale`; False where neither is there."""
    whitened, known = path.with_name("activation_whitening.safetensors"), {}
    if path.is_file():
        known = json.loads(path.read_text())
        scale = known["scaling_factor"]
    if sae.cfg.normalize_activations == "covariance_whitening":
        if not known.get("has_whitening", bool(known)) or not whitened.exists():
            return False
        whitening = load_file(whitened)
        sae.fold_activation_whitening(whitening["mean"], whitening["matrix"], whitening["inverse_matrix"])
        return True
    if scale is None:
        return False
    factor = float(scale)
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"scaling_factor is {factor}, expected a positive number")
    sae.fold_activation_norm_scaling_factor(factor)
    return True


def check_finite(sae: nn.Module, name: str) -> None:
    """Raise InputError where a weight is NaN or infinite."""
    for key, tensor in sae.state_dict().items():
        if tensor.sum().isfinite():  # one pass, which every number that is none ends in
            continue
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
        frozen: nn.Module = sae.to(device=torch.device(device), dtype=dtype).eval().requires_grad_(False)
        return frozen
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the SAE cannot be put on device {device!s}: {on_one_line(error)}") from error


def describe(sae: Any) -> JsonObject:
    """What the configuration says besides sizes, as plain JSON data, None left out."""
    cfg = sae.cfg.to_dict()
    flat = {**{k: v for k, v in cfg.items() if k not in _NOT_METADATA}, **cfg["metadata"]}
    return {k: json.loads(json.dumps(v, default=str)) for k, v in sorted(flat.items()) if v is not None}
