"""Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors`): JumpReLU SAEs, arXiv 2408.05147.

`x_hat = W_dec^T JumpReLU_threshold(W_enc^T x + b_enc) + b_dec`; b_dec is not subtracted from the input. The files
hold weights only: layer, site and model are in the names of the folders above them.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, Site, parse_hookpoint
from saelora.records import JsonObject
from saelora.saes.readers.common import (
    Parts,
    Spec,
    account_for_keys,
    account_for_tensors,
    read_json,
    read_npz,
    read_safetensors,
    take,
    text,
)
from saelora.saes.readers.keys import GEMMA_SCOPE
from saelora.saes.transcoder import TranscoderParts

_SITES: dict[str, Site] = {
    "res": "resid_post",
    "mlp": "mlp_out",
    "att": "attn_z",
    "resid_post": "resid_post",
    "mlp_out": "mlp_out",
    # Gemma Scope 2 names the input of o_proj attn_out
    "attn_out": "attn_z",
}
_SITES.update({f"{site}_all": _SITES[site] for site in ("resid_post", "mlp_out", "attn_out")})
_WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read(folder: Path, name: str) -> Parts | TranscoderParts:
    """Read one Gemma Scope SAE or transcoder; `name` (repository and folders) tells layer, site and model.

    Raises:
        InputError: unknown tensors, or unreadable files.
    """
    npz = folder / "params.npz"
    path = npz if npz.is_file() else folder / "params.safetensors"
    raw = read_npz(path) if path == npz else read_safetensors(path)
    config = read_json(folder / "config.json") if path != npz and (folder / "config.json").is_file() else {}
    name = "/".join(Path(name).parts[-6:])
    if re.search(r"transcoder", name) or "affine_skip_connection" in raw or _out(config):
        return _transcoder(raw, config, path, folder / "config.json", name)
    state = {re.sub(r"^w_", "W_", key): value for key, value in raw.items()}
    if len(state) < len(raw):
        raise InputError(f"{path} holds one tensor under two names ({', '.join(sorted(raw))}): expected one of each")
    if "embedding" in Path(name).parts:
        raise InputError(f"{name} reads the token embeddings, no layer's activations: expected an SAE of a layer")
    _check_config(config, folder / "config.json")
    _check_extra(state, path)
    weights = {key: take(state, key, path) for key in _WEIGHTS}
    if weights["threshold"].ndim == 0:
        weights["threshold"] = weights["threshold"].expand(weights["W_enc"].shape[-1])
    return Spec(
        architecture="jumprelu",
        weights=weights,
        apply_b_dec_to_input=False,
        hook_name=_where(config, name),
        model_name=config.get("model_name") or model_name(name),
        metadata={"context_size": 1024, "prepend_bos": True},
    ).parts(path)


def _transcoder(
    raw: dict[str, Tensor], config: JsonObject, path: Path, config_path: Path, name: str
) -> TranscoderParts:
    """Gemma Scope's read the norm's output before its gain, Gemma Scope 2's the MLP's input; both write mlp_out.

    The affine skip connection is stored as [d_in, d_out].
    """
    check_entries(config, config_path)
    if str(config.get("type", "transcoder")).lower() not in ("transcoder", "none", ""):
        raise InputError(f"{config_path} has type {config['type']!r}, expected transcoder")
    state = {re.sub(r"^w_", "W_", key): value for key, value in raw.items()}
    skip = state.pop("affine_skip_connection", None)
    check_affine(config, skip is not None, path, config_path)
    _check_extra(state, path)
    weights = {key: take(state, key, path) for key in _WEIGHTS}
    weights |= {} if skip is None else {"W_skip": skip.T}
    layers = re.findall(r"(?:^|[/_-])layer_(\d+)(?=[/_-]|$)", name)
    first = path.suffix == ".npz"
    hook_in = config.get("hf_hook_point_in")
    if hook_in is None and layers:
        hook_in = f"blocks.{layers[-1]}.ln2.hook_normalized" if first else f"blocks.{layers[-1]}.mlp.hook_in"
    hook_out = config.get("hf_hook_point_out") or (f"blocks.{layers[-1]}.hook_mlp_out" if layers else None)
    model = config.get("model_name") or model_name(name)
    about = {"model_name": model, "context_size": 1024, "prepend_bos": True}
    return TranscoderParts(
        weights,
        "jumprelu",
        hook_in=hook_in,
        hook_out=hook_out,
        metadata={key: value for key, value in about.items() if value is not None},
    )


def check_affine(config: JsonObject, affine_there: bool, path: Path, config_path: Path) -> None:
    """Raise InputError where the configuration says that there is an affine part, and there is none, or the reverse."""
    if (affine := config.get("affine_connection")) is not None and bool(affine) != affine_there:
        there = "an" if affine_there else "no"
        raise InputError(
            f"{config_path} says affine_connection {affine}, and {path.name} has {there} affine_skip_connection: "
            "the two are not of one transcoder"
        )


def _out(config: JsonObject) -> bool:
    """Whether the configuration of Gemma Scope 2 names an output activation other than its input."""
    out = config.get("hf_hook_point_out")
    return out is not None and out != config.get("hf_hook_point_in")


def _check_config(config: JsonObject, path: Path) -> None:
    """Raise InputError where Gemma Scope 2's configuration says that this is something else than a JumpReLU SAE."""
    check_entries(config, path)
    if config.get("affine_connection") or str(config.get("type", "sae")).lower() not in ("sae", "none", ""):
        kind = config.get("type") or "with an affine connection"
        raise InputError(f"{path} is a transcoder ({kind}): expected an SAE, choose one")


def check_entries(config: JsonObject, path: Path) -> None:
    """Raise InputError where an entry is of the wrong kind, or not known."""
    for key in ("architecture", "model_name", "hf_hook_point_in", "hf_hook_point_out", "type"):
        if config.get(key) is not None:
            text(config[key], key, path)
    account_for_keys(config, GEMMA_SCOPE, path)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise InputError(f"{path} has architecture {config['architecture']!r}, expected jump_relu")


def _check_extra(state: dict[str, Tensor], path: Path) -> None:
    """Early releases carry a scaling factor of ones; any other extra tensor would change the SAE if left out."""
    extra = sorted(set(state) - set(_WEIGHTS))
    if extra == ["scaling_factor"] and torch.allclose(
        state["scaling_factor"], torch.ones_like(state["scaling_factor"])
    ):
        return
    account_for_tensors(state, _WEIGHTS, path)


def _where(config: JsonObject, name: str) -> str | None:
    """TransformerLens' name from the configuration, or else from the folders' names."""
    from_folders, given = _hook_name(name), config.get("hf_hook_point_in")
    if given is None:
        return from_folders
    try:
        hook_name = parse_hookpoint(given).tl_name
    except InputError:
        return str(given)  # refused later, unless a hookpoint is given
    if from_folders not in (None, hook_name):
        raise InputError(f"{name} is a folder of {from_folders}, its configuration says {given}: expected one place")
    return hook_name


def _hook_name(name: str) -> str | None:
    """TransformerLens' name from a path such as gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82."""
    layers = re.findall(r"(?:^|[/_-])layer_(\d+)(?=[/_-]|$)", name)
    for folder in reversed(Path(name).parts):
        for word in (folder, *reversed(folder.split("-"))):
            if layers and word in _SITES:
                return Hookpoint(int(layers[-1]), _SITES[word]).tl_name
    return None


def model_name(name: str) -> str | None:
    """The model that a path such as google/gemma-scope-2-1b-pt/... names, as the hub has it."""
    if match := re.search(r"gemma-scope-2-(\d+[bm])-(pt|it)", name):
        return f"google/gemma-3-{match.group(1)}-{match.group(2)}"
    if match := re.search(r"gemma-scope-(\d+b)-(pt|it)", name):
        return f"google/gemma-2-{match.group(1)}" + ("-it" if match.group(2) == "it" else "")
    return None
