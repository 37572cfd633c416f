"""sparsify's format: `layers.12/cfg.json` + `layers.12/sae.safetensors`, one folder a hookpoint.

TopK with `x_hat = W_dec^T topk(relu(W_enc (x - b_dec) + b_enc)) + b_dec` (SparseCoder.forward of eai-sparsify 1.3.3).
SAELens' converter for this format transposes W_dec and ties the subtraction of b_dec to `normalize_decoder`, so it
is not used.
"""

from pathlib import Path

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

_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read(folder: Path, name: str) -> Parts:
    """Read one sparsify SAE; the folder's name is its hookpoint.

    Raises:
        InputError: a transcoder, a skip connection, an activation other than TopK, or unreadable files.
    """
    cfg_path, weights_path = folder / "cfg.json", folder / "sae.safetensors"
    cfg = read_json(cfg_path)
    _refuse_unsupported(cfg, cfg_path)
    state = read_safetensors(weights_path)
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


def _refuse_unsupported(cfg: JsonObject, path: Path) -> None:
    if cfg.get("transcode") or cfg.get("skip_connection"):
        raise InputError(
            f"{path} is a transcoder's (transcode or skip_connection is true): expected an SAE, choose one"
        )
    for key in ("transcode", "skip_connection", "signed", "normalize_decoder", "multi_topk"):
        flag(cfg.get(key, False), key, path)
    account_for_keys(cfg, SPARSIFY, path)
    if cfg.get("activation", "topk") != "topk" or cfg.get("signed"):
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
