"""Cross-layer transcoders, one layer at a time: circuit-tracer's folders, and those of Gemma Scope 2.

The MLP output of layer j is rebuilt as the sum over layers i <= j of latents_i W_dec_i[:, j - i], plus b_dec_j, and
where there is one an affine map of what layer j reads.
"""

import re
from pathlib import Path

from torch import Tensor

from saelora.errors import InputError
from saelora.records import JsonObject
from saelora.saes.formats import layer_file
from saelora.saes.readers.circuit_tracer import CROSS_LAYER, HOOKS, set_config
from saelora.saes.readers.common import account_for_tensors, read_json, read_safetensors, take, text
from saelora.saes.readers.gemma_scope import check_affine, check_entries, model_name
from saelora.saes.transcoder import TranscoderParts


def read_circuit_tracer(folder: Path, name: str) -> TranscoderParts:
    """One layer of circuit-tracer's (CrossLayerTranscoder); the last part of `name` is its file.

    W_enc_i.safetensors with W_enc_i [d_sae, d_in], b_enc_i, b_dec_i, and where it is a JumpReLU's threshold_i;
    W_dec_i.safetensors with W_dec_i [d_sae, n_layers - i, d_out]; config.yaml says what is read and written.

    Raises:
        InputError: a file is missing, says that it is something else, or has tensors that are not known.
    """
    path, layer = folder / Path(name).name, _layer(name)
    decoder, config_path = folder / f"W_dec_{layer}.safetensors", folder / "config.yaml"
    for file in (config_path, decoder):
        if not file.is_file():
            raise InputError(f"{path} is one layer of a cross-layer transcoder, and there is no {file.name} beside it")
    config = set_config(config_path, CROSS_LAYER)
    state, made = read_safetensors(path), read_safetensors(decoder)
    kept = {f"{key}_{layer}": key for key in ("W_enc", "b_enc", "b_dec", "threshold")}
    account_for_tensors(state, kept, path)
    account_for_tensors(made, [f"W_dec_{layer}"], decoder)
    weights = {ours: take(state, key, path) for key, ours in kept.items() if ours != "threshold" or key in state}
    weights["W_enc"] = weights["W_enc"].T
    weights |= _decoders(take(made, f"W_dec_{layer}", decoder), decoder)
    hooks = {key: f"blocks.{layer}.{text(take(config, key, config_path), key, config_path)}" for key in HOOKS}
    return TranscoderParts(
        weights,
        "jumprelu" if "threshold" in weights else "relu",
        hook_in=hooks["feature_input_hook"],
        hook_out=hooks["feature_output_hook"],
        metadata={"model_name": str(config["model_name"])} if config.get("model_name") is not None else {},
    )


def read_gemma_scope(folder: Path, name: str) -> TranscoderParts:
    """One layer of Gemma Scope 2's; the last part of `name` is its file, the folders above it tell the model.

    params_layer_i.safetensors with w_enc [d_in, d_sae], w_dec [d_sae, n_layers, d_out], b_enc, b_dec, threshold and
    where there is one affine_skip_connection [d_in, d_out]. It reads the MLP's input and writes its output.

    Raises:
        InputError: a crosscoder, what writes into earlier layers, or tensors or entries that are not known.
    """
    path, config_path, layer = folder / Path(name).name, folder / "config.json", _layer(name)
    name = "/".join(Path(name).parts[-6:])
    if "crosscoder" in name:
        raise InputError(f"{name} is a crosscoder, which reads and writes several layers at once: expected transcoders")
    config = read_json(config_path) if config_path.is_file() else {}
    check_entries(config, config_path)
    state = read_safetensors(path)
    needed = ("w_enc", "b_enc", "b_dec", "threshold")
    account_for_tensors(state, (*needed, "w_dec", "affine_skip_connection"), path)
    weights = {re.sub("^w_", "W_", key): take(state, key, path) for key in needed}
    w_dec, skip = take(state, "w_dec", path), state.get("affine_skip_connection")
    check_affine(config, skip is not None, path, config_path)
    if w_dec.ndim != 3 or w_dec.shape[1] <= layer:
        raise InputError(f"{path}: w_dec has shape {tuple(w_dec.shape)}, expected [d_sae, n_layers, d_out]")
    if earlier := int((w_dec[:, :layer] != 0).sum()):
        raise InputError(
            f"{path}: {earlier} weights of w_dec write into layers below {layer}, which have run by then: expected 0"
        )
    weights |= _decoders(w_dec[:, layer:], path) | ({} if skip is None else {"W_skip": skip.T})
    where = {
        key: re.sub(r"(?<=\.)(\d+|\{\w*\})(?=\.)", str(layer), config.get(key) or known, count=1)
        for key, known in (("hf_hook_point_in", _IN), ("hf_hook_point_out", _OUT))
    }
    about: JsonObject = {"model_name": config.get("model_name") or model_name(name), "context_size": 1024}
    return TranscoderParts(
        weights,
        "jumprelu",
        hook_in=where["hf_hook_point_in"],
        hook_out=where["hf_hook_point_out"],
        metadata={key: value for key, value in {**about, "prepend_bos": True}.items() if value is not None},
    )


_IN, _OUT = (f"model.layers.0.{side}_feedforward_layernorm.output" for side in ("pre", "post"))


def _layer(name: str) -> int:
    file = layer_file(Path(name).name)
    assert file is not None
    return file.layer


def _decoders(w_dec: Tensor, path: Path) -> dict[str, Tensor]:
    """Decoders [d_sae, layers from its own on, d_out] as that into its own and those into later ones."""
    if w_dec.ndim != 3 or not w_dec.shape[1]:
        raise InputError(f"{path}: the decoder has shape {tuple(w_dec.shape)}, expected [d_sae, later layers, d_out]")
    return {"W_dec": w_dec[:, 0], "W_ahead": w_dec[:, 1:]}
