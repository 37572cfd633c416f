"""sparsify's format: `layers.12/cfg.json` + `layers.12/sae.safetensors`, one folder a hookpoint.

TopK with `x_hat = W_dec^T topk(relu(W_enc (x - b_dec) + b_enc)) + b_dec` (SparseCoder.forward of eai-sparsify 1.3.3).
SAELens' converter for this format transposes W_dec and ties the subtraction of b_dec to `normalize_decoder`, so it
is not used.
"""

from pathlib import Path
from typing import Any

import torch

from saelora.errors import InputError
from saelora.models.hookpoints import parse_hookpoint
from saelora.saes.readers.common import Parts, Spec, read_json, read_safetensors, take


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
    w_enc = take(state, "encoder.weight", weights_path).T
    weights = {
        "W_enc": w_enc,
        "W_dec": take(state, "W_dec", weights_path),
        "b_enc": state.get("encoder.bias", torch.zeros(w_enc.shape[-1])),
        "b_dec": take(state, "b_dec", weights_path),
    }
    run = _run_config(folder)
    return Spec(
        architecture="topk",
        weights=weights,
        apply_b_dec_to_input=True,
        hook_name=_hook_name(name),
        model_name=run.get("model"),
        extra={"k": int(take(cfg, "k", cfg_path)), "rescale_acts_by_decoder_norm": False},
        metadata={"context_size": run.get("ctx_len"), "dataset_path": run.get("dataset")},
    ).parts(weights_path)


def _refuse_unsupported(cfg: dict[str, Any], path: Path) -> None:
    if cfg.get("transcode") or cfg.get("skip_connection"):
        raise InputError(
            f"{path} is a transcoder's (transcode or skip_connection is true): expected an SAE, choose one"
        )
    if cfg.get("activation", "topk") != "topk" or cfg.get("signed"):
        kind = "signed topk" if cfg.get("signed") else cfg["activation"]
        raise InputError(f"{path} has activation {kind!r}: of sparsify's activations only 'topk' is supported")


def _run_config(folder: Path) -> dict[str, Any]:
    """The training run's `config.json`, which sparsify writes beside the hookpoints' folders; {} without one."""
    for parent in (folder.parent, folder.parent.parent):
        if (parent / "config.json").is_file():
            config = read_json(parent / "config.json")
            return config if "sae" in config or "ctx_len" in config else {}
    return {}


def _hook_name(name: str) -> str | None:
    """The last part of `name` that is a hookpoint: with several seeds the folder is `layers.3.mlp/seed0`."""
    for part in reversed(Path(name).parts[-2:]):
        try:
            return parse_hookpoint(part).tl_name
        except InputError:
            continue
    return None
