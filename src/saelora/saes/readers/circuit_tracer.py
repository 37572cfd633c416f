"""circuit-tracer's folders of transcoders, one file a layer, and those of mwhanna's repositories.

`layer_N.safetensors` with W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc, b_dec, and where it has them a JumpReLU's
threshold and W_skip [d_out, d_in] (SingleLayerTranscoder of circuit-tracer); `config.yaml` says for all of them which
activations they read and write, by TransformerLens's names.
"""

from pathlib import Path

import yaml

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject
from saelora.saes.formats import layer_file
from saelora.saes.readers.common import account_for_keys, account_for_tensors, read_safetensors, take, text
from saelora.saes.transcoder import TranscoderParts, refuse_clt

_KNOWN = (
    *("model_kind", "model_name", "feature_input_hook", "feature_output_hook", "scan", "transcoders"),
    *("repo_id", "revision", "subfolder", "lazy_encoder", "lazy_decoder", "dtype", "device"),
)
_THRESHOLD = ("activation_function.threshold", "threshold")
# where there is no config.yaml, as SAELens and circuit-tracer read mwhanna's
_HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


def read(folder: Path, name: str) -> TranscoderParts:
    """Read one layer's transcoder; the last part of `name` is its file.

    Raises:
        InputError: a cross-layer transcoder, entries or tensors that are not known, or unreadable files.
    """
    path, config_path = folder / Path(name).name, folder / "config.yaml"
    config = _config(config_path) if config_path.is_file() else dict(_HOOKS)
    if "cross" in str(config.get("model_kind", "")) or "clt" in str(config.get("model_kind", "")):
        refuse_clt(str(folder))
    account_for_keys(config, _KNOWN, config_path)
    hooks = {key: text(take(config, key, config_path), key, config_path) for key in _HOOKS}
    state = read_safetensors(path)
    used = ["W_enc", "W_dec", "b_enc", "b_dec", *(key for key in (*_THRESHOLD, "W_skip") if key in state)]
    account_for_tensors(state, used, path)
    weights = {key: take(state, key, path) for key in used if key not in _THRESHOLD}
    weights["W_enc"] = weights["W_enc"].T
    thresholds = [state[key] for key in _THRESHOLD if key in state]
    if len(thresholds) > 1:
        raise InputError(f"{path} has both {' and '.join(_THRESHOLD)}: expected one")
    if thresholds:
        weights["threshold"] = thresholds[0].flatten().expand(len(weights["b_enc"]))
    layer, model = layer_file(path.name), config.get("model_name")
    return TranscoderParts(
        weights,
        "jumprelu" if thresholds else "relu",
        hook_in=f"blocks.{layer}.{hooks['feature_input_hook']}",
        hook_out=f"blocks.{layer}.{hooks['feature_output_hook']}",
        metadata={} if model is None else {"model_name": str(model)},
    )


def _config(path: Path) -> JsonObject:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({on_one_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, expected lines of the form key: value")
    return value
