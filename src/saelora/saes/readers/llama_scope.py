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
from saelora.saes.readers.common import Parts, Spec, read_json, read_safetensors, take


def read(folder: Path, name: str) -> Parts:
    """Read one Llama Scope SAE.

    Raises:
        InputError: a transcoder, an encoder or activation function that is not supported, or unreadable files.
    """
    cfg_path, weights_path = folder / "hyperparams.json", folder / "checkpoints" / "final.safetensors"
    cfg = read_json(cfg_path)
    hook_name = cfg.get("hook_point_in")
    _refuse_unsupported(cfg, cfg_path)
    state = {key: tensor.to(torch.float64) for key, tensor in read_safetensors(weights_path).items()}
    w_enc = take(state, "encoder.weight", weights_path).T
    w_dec = take(state, "decoder.weight", weights_path).T
    factor = _norm_factor(cfg, cfg_path, w_enc.shape[0])
    weights = {
        "W_enc": w_enc * factor,
        "W_dec": w_dec / factor,
        "b_enc": take(state, "encoder.bias", weights_path),
        "b_dec": state.get("decoder.bias", torch.zeros(w_enc.shape[0], dtype=torch.float64)) / factor,
    }
    by_norm = bool(cfg.get("sparsity_include_decoder_norm", True))
    activation = cfg.get("act_fn", "jumprelu").lower()
    extra: dict[str, Any] = {}
    if activation == "jumprelu":
        norm = w_dec.norm(dim=-1).clamp_min(1e-12) if by_norm else torch.ones(w_dec.shape[0], dtype=torch.float64)
        weights["threshold"] = float(take(cfg, "jump_relu_threshold", cfg_path)) * factor / norm
    elif activation == "topk":
        extra = {"k": int(take(cfg, "top_k", cfg_path)), "rescale_acts_by_decoder_norm": by_norm}
    return Spec(
        architecture={"relu": "standard"}.get(activation, activation),
        weights=weights,
        apply_b_dec_to_input=bool(cfg.get("apply_decoder_bias_to_pre_encoder", False)),
        hook_name=hook_name,
        model_name="meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in name else None,
        extra=extra,
        metadata={"context_size": 1024, "prepend_bos": True, "norm_factor": factor},
    ).parts(weights_path)


def _refuse_unsupported(cfg: dict[str, Any], path: Path) -> None:
    out = cfg.get("hook_point_out")
    if out is not None and out != cfg.get("hook_point_in"):
        raise InputError(f"{path} reads {cfg.get('hook_point_in')} and writes {out}: a transcoder, expected an SAE")
    if cfg.get("use_glu_encoder"):
        raise InputError(
            f"{path} has a gated linear unit as encoder (use_glu_encoder): only linear encoders are supported"
        )
    activation = cfg.get("act_fn", "jumprelu")
    if str(activation).lower() not in ("jumprelu", "topk", "relu"):
        raise InputError(f"{path} has act_fn {activation!r}: expected jumprelu, topk or relu")


def _norm_factor(cfg: dict[str, Any], path: Path, d_in: int) -> float:
    """sqrt(d_in) / the data set's average norm, or 1 where the SAE was trained on raw activations."""
    kind = cfg.get("norm_activation", "dataset-wise")
    if kind == "inference":
        return 1.0
    if kind != "dataset-wise":
        raise InputError(f"{path} has norm_activation {kind!r}: expected 'dataset-wise' or 'inference'")
    norm = take(take(cfg, "dataset_average_activation_norm", path), "in", path)
    if not (isinstance(norm, int | float) and math.isfinite(norm) and norm > 0):
        raise InputError(f"{path} has an average activation norm of {norm!r}, expected a positive number")
    return math.sqrt(d_in) / norm
