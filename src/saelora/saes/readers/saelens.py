"""SAELens' own format, version 6 and older: `cfg.json` + `sae_weights.safetensors`.

SAELens 6 runs what earlier versions wrote after leaving out what it no longer has, without a word: activation
functions other than ReLU and TopK, factors trained after the SAE. Here each is taken into account or refused.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from saelora.errors import InputError
from saelora.records import JsonObject
from saelora.saes.inference import CLASSES
from saelora.saes.readers.common import (
    Parts,
    account_for_keys,
    account_for_tensors,
    check_floats,
    check_sizes,
    flag,
    read_json,
    read_safetensors,
    take,
    text,
    whole,
)
from saelora.saes.readers.keys import SAELENS_NEUTRAL, SAELENS_READ
from saelora.saes.saelens import FIRST_WITH_METADATA, need_saelens
from saelora.saes.transcoder import TranscoderParts

_HOOKS = ("hook_name", "hook_point")
_KWARGS = "model_from_pretrained_kwargs"
_ORIGIN = ("model_name", "context_size", "prepend_bos", "dataset_path", "sae_lens_version", "neuronpedia_id")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_SAELENS_ALONE = ("abstopk", "matching_pursuit", "temporal")  # which SAELens has to run
_IN_TRAINING = {"jumprelu": {"jumprelu_ste_to_input", "target_l0"}}  # entries of its configurations for training alone
_UNSUPPORTED = {"temporal": "its latents depend on other positions, and a splice hands it each position by itself"}


def read(folder: Path, name: str) -> Parts | TranscoderParts:
    """Read the files; older configurations are migrated by SAELens when the SAE is built.

    Raises:
        InputError: unreadable files, an architecture that SAELens cannot run, or an entry or tensor whose meaning is
            not known.
    """
    cfg_path, weights_path = folder / "cfg.json", folder / "sae_weights.safetensors"
    cfg = checked(read_json(cfg_path), cfg_path)
    weights = read_safetensors(weights_path)
    check_floats(weights, weights_path)
    if "transcoder" in str(cfg.get("architecture")):
        return _transcoder(cfg, weights, cfg_path, weights_path)
    return Parts(cfg, _scaled(weights, cfg, weights_path))


def _transcoder(cfg: JsonObject, weights: dict[str, Tensor], cfg_path: Path, weights_path: Path) -> TranscoderParts:
    """One of SAELens's four transcoder classes; W_skip is [d_out, d_in] there too.

    Raises:
        InputError: its input is normalised, or the weights are not those of its class.
    """
    kind, metadata = str(cfg["architecture"]), {**cfg, **(cfg.get("metadata") or {})}
    plain = {"normalize_activations": "none", "reshape_activations": "none", "apply_b_dec_to_input": False}
    for key, off in plain.items():
        if cfg.get(key, off) not in (off, None):
            raise InputError(f"{cfg_path} has {key} {cfg[key]!r}: of transcoders only those with {off} can be run")
    wanted = ["W_enc", "W_dec", "b_enc", "b_dec"]
    wanted += ["threshold"] * ("jumprelu" in kind) + ["W_skip"] * ("skip" in kind)
    account_for_tensors(weights, wanted, weights_path)
    tensors = {key: take(weights, key, weights_path) for key in wanted}
    check_sizes(cfg, {"d_in": tensors["W_enc"].shape[0], "d_out": tensors["W_dec"].shape[-1]}, cfg_path)
    kept = (*_ORIGIN, _KWARGS)
    return TranscoderParts(
        tensors,
        "jumprelu" if "jumprelu" in kind else "relu",
        hook_in=metadata.get("hook_name"),
        hook_out=metadata.get("hook_name_out"),
        hf_in=metadata.get("hf_hook_name"),
        metadata={key: metadata[key] for key in kept if metadata.get(key) is not None},
    )


def checked(cfg: JsonObject, path: Path) -> JsonObject:
    """A configuration of any version, all of whose entries are understood; those that only name things are kept.

    Raises:
        InputError: an entry that SAELens would leave out though it changes what the SAE computes.
    """
    cfg = dict(cfg)
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError(f"{path} has a {type(metadata).__name__} as 'metadata', expected an object")
    architecture = _architecture(cfg, path)
    _check_values(cfg, path)
    _check_names(cfg, metadata, path)
    _check_version(cfg, metadata, path)
    if metadata and cfg.get(_KWARGS) and not metadata.get(_KWARGS):  # SAELens 6 reads it in the metadata alone
        cfg["metadata"] = {**metadata, _KWARGS: cfg[_KWARGS]}
    k = _k_of_topk({**metadata, **cfg}, architecture, path)
    kind = "topk" if k is not None and architecture == "standard" else architecture
    account_for_keys(cfg, SAELENS_READ | SAELENS_NEUTRAL | _fields(kind), path)
    cfg.pop("activation_fn_kwargs", None)
    if k is None:
        return cfg
    # in each of the places where one version of SAELens or another looks; without it 6 runs ReLU, or its default k
    return {**cfg, "architecture": kind, "k": k, "activation_fn_kwargs": {"k": k}}


def _architecture(cfg: JsonObject, path: Path) -> str:
    architecture = text(cfg.get("architecture", "standard"), "architecture", path)
    if architecture not in (*CLASSES, *_TRANSCODERS, *_SAELENS_ALONE):
        known = ", ".join(sorted((*CLASSES, *_TRANSCODERS, *_SAELENS_ALONE)))
        raise InputError(
            f"{path} has architecture {architecture!r}, expected one of {known}: "
            "a training checkpoint must first be exported with SAELens' save_inference_model"
        )
    if architecture in _UNSUPPORTED:
        raise InputError(f"{path} is a {architecture} SAE: {_UNSUPPORTED[architecture]}")
    return architecture


def _check_values(cfg: JsonObject, path: Path) -> None:
    """Raise InputError where an entry that SAELens takes as it is has a value that it would misread."""
    for key in ("d_in", "d_sae"):
        if key in cfg:
            whole(cfg[key], key, path)
    for key in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if key in cfg:
            flag(cfg[key], key, path)
    if cfg.get("finetuning_scaling_factor") is not None:
        flag(cfg["finetuning_scaling_factor"], "finetuning_scaling_factor", path)
    if cfg.get("reshape_activations") not in (None, "none", "hook_z"):
        raise InputError(f"{path} has reshape_activations {cfg['reshape_activations']!r}, expected none or hook_z")


def _fields(architecture: str) -> set[str]:
    """The entries of SAELens' configurations of this architecture, for use and for training."""
    if architecture in CLASSES:
        return {field.name for field in fields(CLASSES[architecture][1])} | _IN_TRAINING.get(architecture, set())
    need_saelens(f"an SAE of architecture {architecture}")
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    configs: list[Any] = [
        classes[1]
        for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY)
        if (classes := registry.get(architecture)) is not None
    ]
    return {field.name for config in configs for field in fields(config)}


def _check_version(cfg: JsonObject, metadata: JsonObject, path: Path) -> None:
    """Raise InputError where the version that wrote the file, on which its meaning depends, cannot be read."""
    version = cfg.get("sae_lens_version") or metadata.get("sae_lens_version")
    try:
        new = version is not None and Version(str(version)) >= FIRST_WITH_METADATA
    except InvalidVersion as error:
        raise InputError(f"{path} has sae_lens_version {version!r}, expected a version such as 6.0.0") from error
    if metadata and not new:
        raise InputError(
            f"{path} has 'metadata' and sae_lens_version {version}: only SAELens 6 and later write the former, so "
            "what wrote this file is not known; put the true version there"
        )


def _check_names(cfg: JsonObject, metadata: JsonObject, path: Path) -> None:
    """Raise InputError where the hook is no name, or that of one attention head."""
    for key in ("hook_name", "hook_point"):
        if cfg.get(key, "") is None:
            del cfg[key]
    hooks = [text(place[key], key, path) for place in (cfg, metadata) for key in _HOOKS if place.get(key) is not None]
    if len(set(hooks)) > 1:
        raise InputError(f"{path} names two hooks, {hooks[0]} and {hooks[1]}: expected one")
    cfg = {**metadata, **cfg}
    for key in ("hook_head_index", "hook_point_head_index"):
        if cfg.get(key) is not None:
            raise InputError(
                f"{path} has {key} {cfg[key]}: the SAE was trained on one attention head's output, "
                "and only SAEs of all heads together can be spliced in"
            )


def _k_of_topk(cfg: JsonObject, architecture: str, path: Path) -> int | None:
    """The k of a TopK SAE, None for other SAEs.

    Raises:
        InputError: SAELens 6 would not run the activation function that the configuration names.
    """
    named = {key: cfg[key] for key in ("activation_fn", "activation_fn_str") if cfg.get(key) is not None}
    options = cfg.get("activation_fn_kwargs") or {}
    if len(set(map(str, named.values()))) > 1:
        raise InputError(f"{path} names two activation functions: {named}")
    function = next(iter(named.values()), None)
    is_topk = architecture in ("topk", "abstopk") or (architecture == "standard" and function == "topk")
    if not isinstance(options, dict):
        raise InputError(f"{path} has activation_fn_kwargs {options!r}, expected an object")
    allowed = {"topk": is_topk, "relu": architecture in ("standard", "gated", "jumprelu")}
    if function is not None and not allowed.get(str(function), False):
        raise InputError(
            f"{path} has activation function {function!r} in a {architecture} SAE, which SAELens 6 would run as "
            "another: expected relu, or topk in a standard or topk SAE"
        )
    if options and not is_topk:
        raise InputError(f"{path} has activation_fn_kwargs {options}, expected none for {function}")
    if not is_topk:
        return None
    account_for_keys(options, ("k", "use_sparse_activations"), path, "activation_fn_kwargs.")
    ks = {whole(place["k"], "k", path) for place in (cfg, options) if place.get("k") is not None}
    if len(ks) != 1:
        raise InputError(f"{path} is a TopK SAE with k {' and '.join(map(str, ks)) or 'missing'}: expected one number")
    k = ks.pop()
    if isinstance(cfg.get("d_sae"), int) and k > cfg["d_sae"]:
        raise InputError(f"{path}: k is {k}, expected 1 to d_sae {cfg['d_sae']}")
    return k


def _scaled(weights: dict[str, Tensor], cfg: JsonObject, path: Path) -> dict[str, Tensor]:
    """The weights with a factor on each latent, which SAELens before 6 trained afterwards, folded into the decoder."""
    used = cfg.pop("finetuning_scaling_factor", None)
    present = [key for key in ("scaling_factor", "finetuning_scaling_factor") if key in weights]
    if not present:
        if used:
            raise InputError(
                f"{path} has no finetuning_scaling_factor, which its configuration says the SAE uses: "
                "it is incomplete, get it again"
            )
        return weights
    if len(present) > 1 or "W_dec" not in weights:
        raise InputError(f"{path} has {' and '.join(present)}: expected one of them, beside W_dec")
    factor = weights.pop(present[0])
    if torch.equal(factor, torch.ones_like(factor)):
        return weights
    if used is False or (used is None and cfg.get("metadata")):
        raise InputError(
            f"{path} has a {present[0]} other than one, and its configuration does not say that it is used "
            "(finetuning_scaling_factor): only one of them can be true"
        )
    if tuple(factor.shape) != (len(weights["W_dec"]),) or cfg.get("rescale_acts_by_decoder_norm"):
        raise InputError(f"{path} has a {present[0]} of shape {tuple(factor.shape)}, expected one number a latent")
    return {**weights, "W_dec": factor[:, None].double() * weights["W_dec"].double()}
