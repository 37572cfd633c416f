"""dictionary_learning's format: `config.json` {"trainer": ..., "buffer": ...} + `ae.pt`.

BatchTopK and Matryoshka SAEs run with their one learnt threshold, as that library runs them at inference, so they
become JumpReLU SAEs; AutoEncoderTopK keeps its k latents per token even where a threshold was saved with it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, Site
from saelora.records import JsonObject
from saelora.saes.readers.common import (
    Parts,
    Spec,
    account_for_keys,
    account_for_tensors,
    check_sizes,
    read_json,
    read_torch,
    take,
    whole,
)
from saelora.saes.readers.keys import DICTIONARY_LEARNING

State = dict[str, Tensor]


def read(folder: Path, name: str) -> Parts:
    """Read one dictionary_learning SAE, also from a mid-run checkpoint (weights nested under "ae").

    Raises:
        InputError: an unknown class, pickled Python objects, or unreadable files.
    """
    cfg_path, weights_path = folder / "config.json", folder / "ae.pt"
    cfg = read_json(cfg_path)
    trainer = take(cfg, "trainer", cfg_path)
    if not isinstance(trainer, dict):
        raise InputError(f"{cfg_path} has a {type(trainer).__name__} as 'trainer', expected an object")
    kind = take(trainer, "dict_class", cfg_path)
    if kind not in _CLASSES:
        raise InputError(f"{cfg_path} has dict_class {kind!r}: expected one of {', '.join(_CLASSES)}")
    account_for_keys(trainer, DICTIONARY_LEARNING, cfg_path, "trainer.")
    raw = read_torch(weights_path)
    state = raw["ae"] if isinstance(raw.get("ae"), dict) else raw
    architecture, subtracts, convert = _CLASSES[kind]
    weights, used = _converted(convert, state, weights_path)
    buffers = ("k", "threshold", "group_sizes") if "TopK" in kind else ()
    account_for_tensors(map(str, state), used.union(buffers), weights_path)
    extra = {}
    k = _k(trainer, state, cfg_path)
    if architecture == "topk":
        if k is None:
            raise InputError(f"{cfg_path} has no 'k' for {kind}: expected it under 'trainer'")
        extra = {"k": k, "rescale_acts_by_decoder_norm": False}
    d_in, d_sae = weights["W_enc"].shape
    check_sizes(trainer, {"activation_dim": d_in, "dict_size": d_sae}, cfg_path)
    groups = state.get("group_sizes", torch.tensor(trainer.get("group_sizes") or [d_sae]))
    if int(groups.sum()) != d_sae:
        raise InputError(
            f"{weights_path} has groups of {groups.tolist()} latents, {d_sae} in all: expected each in one"
        )
    return Spec(
        architecture=architecture,
        weights=weights,
        apply_b_dec_to_input=subtracts,
        hook_name=_hook_name(trainer, cfg.get("buffer") or {}),
        model_name=trainer.get("lm_name"),
        extra=extra,
        metadata={"context_size": (cfg.get("buffer") or {}).get("ctx_len"), "k": trainer.get("k")},
    ).parts(weights_path)


class _Noting(dict[str, Any]):
    """A state dict that notes which of its entries are looked up."""

    def __init__(self, state: State):
        super().__init__(state)
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.used.add(key)
        return super().__getitem__(key)


def _converted(convert: Callable[[State, Path], State], state: State, path: Path) -> tuple[State, set[str]]:
    """The weights in SAELens' terms, and the names of the tensors that they were made of."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path} has a {type(value).__name__} as {key!r}, expected tensors alone")
    noting = _Noting(state)
    return convert(noting, path), noting.used


def _k(trainer: JsonObject, state: State, path: Path) -> int | None:
    """The number of active latents, from the configuration or the weights."""
    found = [trainer["k"]] if trainer.get("k") is not None else []
    found += [int(state["k"])] if "k" in state else []
    ks = {whole(k, "k", path) for k in found}
    if len(ks) > 1:
        raise InputError(f"{path} says k {found[0]}, the weights beside it {found[1]}: the two are not of one SAE")
    return ks.pop() if ks else None


def _linear(state: State, path: Path, *, bias: str) -> State:
    """The encoder and decoder of the classes built from torch.nn.Linear; `bias` names their decoder bias."""
    return {
        "W_enc": take(state, "encoder.weight", path).T,
        "W_dec": take(state, "decoder.weight", path).T,
        "b_dec": take(state, bias, path),
    }


def _relu(state: State, path: Path) -> State:
    return {**_linear(state, path, bias="bias"), "b_enc": take(state, "encoder.bias", path)}


def _relu_new(state: State, path: Path) -> State:
    return {**_linear(state, path, bias="decoder.bias"), "b_enc": take(state, "encoder.bias", path)}


def _gated(state: State, path: Path) -> State:
    weights = _linear(state, path, bias="decoder_bias")
    for ours, theirs in {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}.items():
        weights[ours] = take(state, theirs, path)
    return weights


def _top_k(state: State, path: Path) -> State:
    return {**_linear(state, path, bias="b_dec"), "b_enc": take(state, "encoder.bias", path)}


def _jump_relu(state: State, path: Path) -> State:
    if "W_enc" not in state:
        weights = _top_k(state, path)
    else:
        weights = {key: take(state, key, path) for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
    threshold = take(state, "threshold", path)
    if bool((threshold < 0).any()):
        raise InputError(
            f"{path} has a negative threshold, as before one is learnt: the SAE has not been trained long enough to be "
            "used, take a later checkpoint"
        )
    weights["threshold"] = threshold.expand(weights["W_enc"].shape[-1]) if threshold.ndim == 0 else threshold
    return weights


# dict_class -> SAELens architecture, whether b_dec is subtracted from the input, conversion
_CLASSES: dict[str, tuple[str, bool, Callable[[State, Path], State]]] = {
    "AutoEncoder": ("standard", True, _relu),
    "AutoEncoderNew": ("standard", False, _relu_new),
    "GatedAutoEncoder": ("gated", True, _gated),
    "JumpReluAutoEncoder": ("jumprelu", False, _jump_relu),
    "AutoEncoderTopK": ("topk", True, _top_k),
    "BatchTopKSAE": ("jumprelu", True, _jump_relu),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, _jump_relu),
}


_SITES: dict[str, Site] = {
    "resid_post": "resid_post",
    "resid_pre": "resid_pre",
    "mlp_out": "mlp_out",
    "mlp": "mlp_module_out",
    "attn_out": "attn_out",
    "attention_out": "attn_out",
    "att": "attn_module_out",
}
_SANDWICH = re.compile(r"gemma-?[23]|olmo-?[23]")


def _hook_name(trainer: JsonObject, buffer: JsonObject) -> str | None:
    """TransformerLens' name from the layer and the submodule ("resid_post_layer_12", "mlp_out_layer_3", ...).

    None where that is not certain: where the buffer took a module's input, and for "mlp_out" or "attn_out" of families
    in which what the module returns is not what is added to the stream.
    """
    layer, submodule = trainer.get("layer"), str(trainer.get("submodule_name") or "resid_post")
    if not isinstance(layer, int) or isinstance(layer, bool):
        return None
    site = next((site for prefix, site in _SITES.items() if submodule.startswith(prefix)), None)
    if buffer.get("io", "out") != "out":
        site = "resid_pre" if (buffer["io"], site) == ("in", "resid_post") else None
    if site in ("mlp_out", "attn_out") and _SANDWICH.search(str(trainer.get("lm_name")).lower()):
        site = None
    return Hookpoint(layer, site).tl_name if site else None
