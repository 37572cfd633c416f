"""circuit-tracer's folders of transcoders, one file a layer, and those of mwhanna's repositories.

`layer_N.safetensors` with W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc, b_dec, and where it has them a JumpReLU's
threshold and W_skip [d_out, d_in] (SingleLayerTranscoder of circuit-tracer); `config.yaml` says for all of them which
activations they read and write, by TransformerLens's names, and for TopK transcoders `activation: topk` and k.
"""

from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject
from saelora.saes.formats import layer_file
from saelora.saes.readers.common import account_for_keys, account_for_tensors, read_safetensors, take, text, whole
from saelora.saes.transcoder import Activation, TranscoderParts

CROSS_LAYER, _ONE_LAYER = "cross_layer_transcoder", "transcoder_set"
_KNOWN = (
    *("model_kind", "model_name", "feature_input_hook", "feature_output_hook", "scan", "transcoders"),
    *("repo_id", "revision", "subfolder", "lazy_encoder", "lazy_decoder", "dtype", "device"),
)
_THRESHOLD = ("activation_function.threshold", "threshold")
# where there is no config.yaml, as SAELens and circuit-tracer read mwhanna's
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
# TopK sets whose configuration may lack k -> what circuit-tracer takes
_K = {"crv-8b-instruct-transcoders": 128}


def read(folder: Path, name: str) -> TranscoderParts:
    """Read one layer's transcoder; the last part of `name` is its file.

    Raises:
        InputError: a configuration of something else, entries or tensors that are not known, or unreadable files.
    """
    path, config_path = folder / Path(name).name, folder / "config.yaml"
    config = set_config(config_path, _ONE_LAYER, "activation", "k") if config_path.is_file() else dict(HOOKS)
    hooks = {key: text(take(config, key, config_path), key, config_path) for key in HOOKS}
    state = read_safetensors(path)
    used = ["W_enc", "W_dec", "b_enc", "b_dec", *(key for key in (*_THRESHOLD, "W_skip", "k") if key in state)]
    account_for_tensors(state, used, path)
    weights = {key: take(state, key, path) for key in used if key not in (*_THRESHOLD, "k")}
    weights["W_enc"] = weights["W_enc"].T
    thresholds = [state[key] for key in _THRESHOLD if key in state]
    if len(thresholds) > 1:
        raise InputError(f"{path} has both {' and '.join(_THRESHOLD)}: expected one")
    if thresholds:
        weights["threshold"] = thresholds[0].flatten().expand(len(weights["b_enc"]))
    activation, k = _activation(config, config_path, state, name)
    layer, model = layer_file(path.name), config.get("model_name")
    assert layer is not None
    return TranscoderParts(
        weights,
        activation,
        k,
        hook_in=f"blocks.{layer.layer}.{hooks['feature_input_hook']}",
        hook_out=f"blocks.{layer.layer}.{hooks['feature_output_hook']}",
        metadata={} if model is None else {"model_name": str(model)},
    )


def _activation(config: JsonObject, path: Path, state: dict[str, Tensor], name: str) -> tuple[Activation, int | None]:
    """The activation function and, of TopK, k: by config.yaml, or as circuit-tracer saves it, a tensor of the layer."""
    said, threshold = config.get("activation"), any(key in state for key in _THRESHOLD)
    found: Activation = "jumprelu" if threshold else "relu"
    if said != "topk":
        if said not in (None, "relu", "jump_relu", "jumprelu") or (said is not None and (said == "relu") == threshold):
            there = "a" if threshold else "no"
            raise InputError(f"{path} has activation {said!r} beside {there} threshold, expected relu, or topk with k")
        if "k" in state or config.get("k") is not None:
            raise InputError(f"{path} has no activation: topk, and there is a k: expected both or none")
        return found, None
    if threshold:
        raise InputError(f"{path} has activation 'topk', and {Path(name).name} a threshold: expected one of them")
    known: list[Any] = [config.get("k"), state["k"].item() if "k" in state else None]
    known += [k for part, k in _K.items() if part in f"{name} {config.get('scan')}"]
    ks = {whole(k, "k", path) for k in known if k is not None}
    if len(ks) != 1:
        got = f"k {' and '.join(map(str, sorted(ks)))}" if ks else "no k"
        raise InputError(f"{path} has activation 'topk' and {got}: expected one number of active latents")
    return "signed_topk", ks.pop()


def set_config(path: Path, kind: str, *more: str) -> JsonObject:
    """What a set's config.yaml says.

    Args:
        kind: of circuit-tracer's model_kind, what the files at hand are.
        more: entries that are known beside those of every set.

    Raises:
        InputError: it says another kind, it has entries that are not known, or it is unreadable.
    """
    config = _config(path)
    account_for_keys(config, (*_KNOWN, *more), path)
    if config.get("model_kind", kind) != kind:
        raise InputError(
            f"{path} has model_kind {config['model_kind']!r}, its folder the files of a {kind}: expected that"
        )
    return config


def _config(path: Path) -> JsonObject:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({on_one_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, expected lines of the form key: value")
    return value
