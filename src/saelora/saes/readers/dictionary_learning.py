"""dictionary_learning's format: `config.json` {"trainer": ..., "buffer": ...} + `ae.pt`.

BatchTopK and Matryoshka SAEs run with their one learnt threshold, as that library runs them at inference, so they
become JumpReLU SAEs; AutoEncoderTopK keeps its k latents per token even where a threshold was saved with it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, Site
from saelora.saes.readers.common import Parts, Spec, read_json, read_torch, take

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
    raw = read_torch(weights_path)
    state = raw["ae"] if isinstance(raw.get("ae"), dict) else raw
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    architecture, subtracts, convert = _CLASSES[kind]
    extra = {}
    if architecture == "topk":
        k = trainer.get("k") or state.get("k")
        if k is None:
            raise InputError(f"{cfg_path} has no 'k' for {kind}: expected it under 'trainer'")
        extra = {"k": int(k), "rescale_acts_by_decoder_norm": False}
    return Spec(
        architecture=architecture,
        weights=convert(state, weights_path),
        apply_b_dec_to_input=subtracts,
        hook_name=_hook_name(trainer),
        model_name=trainer.get("lm_name"),
        extra=extra,
        metadata={"context_size": (cfg.get("buffer") or {}).get("ctx_len"), "k": trainer.get("k")},
    ).parts(weights_path)


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


def _hook_name(trainer: dict[str, Any]) -> str | None:
    """TransformerLens' name from the layer and the submodule ("resid_post_layer_12", "mlp_out_layer_3", ...)."""
    layer, submodule = trainer.get("layer"), str(trainer.get("submodule_name") or "resid_post")
    if not isinstance(layer, int) or isinstance(layer, bool):
        return None
    sites: dict[str, Site] = {"resid_post": "resid_post", "resid_pre": "resid_pre", "mlp": "mlp_out", "att": "attn_out"}
    site = next((site for prefix, site in sites.items() if submodule.startswith(prefix)), None)
    return Hookpoint(layer, site).tl_name if site else None
