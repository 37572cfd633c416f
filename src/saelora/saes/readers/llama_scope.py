"""Llama Scope (`hyperparams.json` + `checkpoints/final.safetensors`), arXiv 2410.20526.

The weights belong to activations scaled to an average norm of sqrt(d_in), f = sqrt(d_in) / average norm. f is folded
into W_enc, W_dec and b_dec here, as SAELens does with the factor in its registry. The released threshold compares
with pre-activations in the units of the raw input and of a decoder with unit rows (Language-Model-SAEs applies it after
both rescalings), so per latent it becomes f * threshold / ||W_dec row||. SAELens leaves the row norm out: equal where
rows have norm 1.
"""

import math
from pathlib import Path
from typing import Any

import torch

from saelora.errors import InputError
from saelora.records import JsonObject
from saelora.saes.readers.common import (
    Parts,
    Spec,
    account_for_keys,
    account_for_tensors,
    check_floats,
    check_sizes,
    flag,
    number,
    read_json,
    read_safetensors,
    take,
    text,
    whole,
)
from saelora.saes.readers.keys import LLAMA_SCOPE

_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight")
_BIAS_FIRST = "apply_decoder_bias_to_pre_encoder"


def read(folder: Path, name: str) -> Parts:
    """Read one Llama Scope SAE.

    Raises:
        InputError: a transcoder, an encoder or activation function that is not supported, entries or tensors that
            are not known, or unreadable files.
    """
    cfg_path, weights_path = folder / "hyperparams.json", folder / "checkpoints" / "final.safetensors"
    cfg = read_json(cfg_path)
    hook_name = cfg.get("hook_point_in")
    activation = _activation(cfg, cfg_path)
    raw = read_safetensors(weights_path)
    check_floats(raw, weights_path)
    state = {key: tensor.to(torch.float64) for key, tensor in raw.items()}
    biased = flag(cfg.get("use_decoder_bias", True), "use_decoder_bias", cfg_path)
    account_for_tensors(state, [*_TENSORS, "decoder.bias"] if biased else _TENSORS, weights_path)
    w_enc, w_dec = (take(state, f"{side}coder.weight", weights_path).T for side in ("en", "de"))
    if w_enc.ndim != 2 or w_enc.shape != w_dec.T.shape:
        raise InputError(f"{weights_path} has matrices {tuple(w_enc.T.shape)} and {tuple(w_dec.T.shape)}: no SAE's")
    check_sizes(cfg, {"d_model": w_enc.shape[0], "d_sae": w_enc.shape[1]}, cfg_path)
    factor = _norm_factor(cfg, cfg_path, w_enc.shape[0])
    b_dec = take(state, "decoder.bias", weights_path) if biased else torch.zeros(w_enc.shape[0], dtype=torch.float64)
    weights = {
        "W_enc": w_enc * factor,
        "W_dec": w_dec / factor,
        "b_enc": take(state, "encoder.bias", weights_path),
        "b_dec": b_dec / factor,
    }
    by_norm = flag(_given(cfg, "sparsity_include_decoder_norm", cfg_path), "sparsity_include_decoder_norm", cfg_path)
    extra: JsonObject = {}
    if activation == "jumprelu":
        norm = w_dec.norm(dim=-1).clamp_min(1e-12) if by_norm else torch.ones(w_dec.shape[0], dtype=torch.float64)
        threshold = number(take(cfg, "jump_relu_threshold", cfg_path), "jump_relu_threshold", cfg_path, least=0)
        weights["threshold"] = threshold * factor / norm
    elif activation == "topk":
        k = whole(take(cfg, "top_k", cfg_path), "top_k", cfg_path)
        extra = {"k": k, "rescale_acts_by_decoder_norm": by_norm}
    return Spec(
        architecture={"relu": "standard"}.get(activation, activation),
        weights=weights,
        apply_b_dec_to_input=flag(_given(cfg, _BIAS_FIRST, cfg_path), _BIAS_FIRST, cfg_path),
        hook_name=hook_name,
        model_name="meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in name else None,
        extra=extra,
        metadata={"context_size": 1024, "prepend_bos": True, "norm_factor": factor},
    ).parts(weights_path)


def _given(cfg: JsonObject, key: str, path: Path) -> Any:
    """An entry that Language-Model-SAEs always writes; its versions have had different values for one left out."""
    if key not in cfg:
        raise InputError(f"{path} has no {key!r}, on which the SAE's arithmetic depends: get the whole file again")
    return cfg[key]


def _activation(cfg: JsonObject, path: Path) -> str:
    """jumprelu, topk or relu, once nothing else stands against reading this SAE.

    Language-Model-SAEs runs a TopK SAE with a threshold as JumpReLU.
    """
    account_for_keys(cfg, LLAMA_SCOPE, path)
    out = cfg.get("hook_point_out")
    if out is not None and out != cfg.get("hook_point_in"):
        raise InputError(f"{path} reads {cfg.get('hook_point_in')} and writes {out}: a transcoder, expected an SAE")
    if flag(cfg.get("use_glu_encoder", False), "use_glu_encoder", path):
        raise InputError(
            f"{path} has a gated linear unit as encoder (use_glu_encoder): only linear encoders are supported"
        )
    given = text(_given(cfg, "act_fn", path), "act_fn", path)
    activation = given.lower()
    if activation not in ("jumprelu", "topk", "relu"):
        raise InputError(f"{path} has act_fn {activation!r}: expected jumprelu, topk or relu")
    if given == "topk" and number(cfg.get("jump_relu_threshold", 0), "jump_relu_threshold", path) > 0:
        return "jumprelu"
    return activation


def _norm_factor(cfg: JsonObject, path: Path, d_in: int) -> float:
    """sqrt(d_in) / the data set's average norm, or 1 where the SAE was trained on raw activations."""
    kind = _given(cfg, "norm_activation", path)
    if kind == "inference":
        return 1.0
    if kind != "dataset-wise":
        raise InputError(f"{path} has norm_activation {kind!r}: expected 'dataset-wise' or 'inference'")
    norms = take(cfg, "dataset_average_activation_norm", path)
    norm = take(norms, "in", path)
    if isinstance(norm, bool) or not (isinstance(norm, int | float) and math.isfinite(norm) and norm > 0):
        raise InputError(f"{path} has an average activation norm of {norm!r}, expected a positive number")
    if norms.get("out", norm) != norm:
        raise InputError(f"{path} has norms {norms}: an SAE's input and output are one activation, of one norm")
    return math.sqrt(d_in) / norm
