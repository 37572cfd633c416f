"""sparsify's format: `layers.12/cfg.json` + `layers.12/sae.safetensors`, one folder a hookpoint.

TopK with `x_hat = W_dec^T topk(relu(W_enc (x - b_dec) + b_enc)) + b_dec` (SparseCoder.forward of eai-sparsify 1.3.3).
SAELens' converter for this format transposes W_dec and ties the subtraction of b_dec to `normalize_decoder`, so it
is not used.
"""

from pathlib import Path

from torch import Tensor

from saelora.errors import InputError
from saelora.models.hookpoints import parse_hookpoint
from saelora.records import JsonObject
from saelora.saes.readers.common import (
    Parts,
    Spec,
    account_for_keys,
    account_for_tensors,
    check_sizes,
    flag,
    read_json,
    read_safetensors,
    take,
    whole,
)
from saelora.saes.readers.keys import SPARSIFY
from saelora.saes.transcoder import TranscoderParts

_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read(folder: Path, name: str) -> Parts | TranscoderParts:
    """Read one sparsify SAE or transcoder; the folder's name is its hookpoint.

    Raises:
        InputError: an SAE with a skip connection, an activation that is not known, or unreadable files.
    """
    cfg_path, weights_path = folder / "cfg.json", folder / "sae.safetensors"
    cfg = read_json(cfg_path)
    _refuse_unsupported(cfg, cfg_path)
    state = read_safetensors(weights_path)
    if cfg.get("transcode"):
        return _transcoder(cfg, state, cfg_path, weights_path, name)
    if "W_skip" in state:
        raise InputError(f"{weights_path} has W_skip: transcoders with a skip connection are not SAEs, choose an SAE")
    account_for_tensors(state, _TENSORS, weights_path)
    w_enc = take(state, "encoder.weight", weights_path).T
    weights = {
        "W_enc": w_enc,
        "W_dec": take(state, "W_dec", weights_path),
        "b_enc": take(state, "encoder.bias", weights_path),
        "b_dec": take(state, "b_dec", weights_path),
    }
    check_sizes(cfg, {"d_in": w_enc.shape[0], "num_latents": w_enc.shape[-1]}, cfg_path)
    run = _run_config(folder)
    return Spec(
        architecture="topk",
        weights=weights,
        apply_b_dec_to_input=True,
        hook_name=_hook_name(name, run),
        model_name=run.get("model"),
        extra={"k": whole(take(cfg, "k", cfg_path), "k", cfg_path), "rescale_acts_by_decoder_norm": False},
        metadata={"context_size": run.get("ctx_len"), "dataset_path": run.get("dataset")},
    ).parts(weights_path)


def _transcoder(
    cfg: JsonObject, state: dict[str, Tensor], cfg_path: Path, weights_path: Path, name: str
) -> TranscoderParts:
    """A module's output from its input: b_dec is not taken off, and W_skip is [d_out, d_in]."""
    skips = flag(cfg.get("skip_connection", False), "skip_connection", cfg_path)
    tensors = (*_TENSORS, "W_skip") if skips else _TENSORS
    account_for_tensors(state, tensors, weights_path)
    w_enc = take(state, "encoder.weight", weights_path).T
    names = {"W_dec": "W_dec", "b_enc": "encoder.bias", "b_dec": "b_dec"}
    names |= {"W_skip": "W_skip"} if skips else {}
    weights = {"W_enc": w_enc, **{ours: take(state, theirs, weights_path) for ours, theirs in names.items()}}
    check_sizes(cfg, {"d_in": w_enc.shape[0], "num_latents": w_enc.shape[-1]}, cfg_path)
    run = _run_config(cfg_path.parent)
    out = _module(name)
    return TranscoderParts(
        weights,
        cfg.get("activation", "topk"),
        whole(take(cfg, "k", cfg_path), "k", cfg_path),
        hook_in=None if out is None else f"layers.{parse_hookpoint(out).layer}.mlp_in",
        hook_out=out,
        metadata={k: v for k, v in (("model_name", run.get("model")), ("context_size", run.get("ctx_len"))) if v},
    )


def _module(name: str) -> str | None:
    """The last part of a name that is a hookpoint: what a transcoder there writes."""
    for part in reversed(Path(name).parts[-2:]):
        try:
            parse_hookpoint(part)
        except InputError:
            continue
        return part
    return None


def _refuse_unsupported(cfg: JsonObject, path: Path) -> None:
    if cfg.get("skip_connection") and not cfg.get("transcode"):
        raise InputError(f"{path} is an SAE with a skip connection: expected an SAE or a transcoder, choose one")
    for key in ("transcode", "skip_connection", "signed", "normalize_decoder", "multi_topk"):
        flag(cfg.get(key, False), key, path)
    account_for_keys(cfg, SPARSIFY, path)
    allowed = ("topk", "groupmax") if cfg.get("transcode") else ("topk",)
    if cfg.get("activation", "topk") not in allowed or cfg.get("signed"):
        kind = "signed topk" if cfg.get("signed") else cfg["activation"]
        raise InputError(f"{path} has activation {kind!r}: of sparsify's activations only 'topk' is supported")


def _run_config(folder: Path) -> JsonObject:
    """The training run's `config.json`, which sparsify writes beside the hookpoints' folders; {} without one."""
    for parent in (folder.parent, folder.parent.parent):
        if (parent / "config.json").is_file():
            config = read_json(parent / "config.json")
            return config if "sae" in config or "ctx_len" in config else {}
    return {}


def _hook_name(name: str, run: JsonObject) -> str | None:
    """The last part of `name` that is a hookpoint: with several seeds the folder is `layers.3.mlp/seed0`.

    A module's name means its output; a run may say that it trained on inputs instead (hook_mode).
    """
    side = {"output": "", "input": ".input"}.get(str(run.get("hook_mode", "output")))
    for part in reversed(Path(name).parts[-2:]):
        try:
            return None if side is None else parse_hookpoint(part + side).tl_name
        except InputError:
            continue
    return None
