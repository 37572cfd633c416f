"""SAEs and transcoders written in SAELens's format, and sets of transcoders in circuit-tracer's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from saelora.files import whole_files, whole_folder
from saelora.saes.saelens import saelens_version
from saelora.saes.transcoder import Transcoder

SAE_FILES = ("sae_weights.safetensors", "cfg.json")
_CIRCUIT_TRACER = {
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
}


def save_sae(sae: Any, folder: Path) -> None:
    """Write an SAE or transcoder as SAELens does, whose ``SAE.load_from_disk`` reads it: both files, or neither.

    Raises:
        InputError: the disk is full or not writable.
    """
    with whole_files(folder, SAE_FILES) as part:
        if isinstance(sae, Transcoder):
            _save_transcoder(sae, part)
        else:
            sae.save_model(part)


def _save_transcoder(transcoder: Transcoder, folder: Path) -> None:
    """As the class of SAELens's that computes the same; its metadata have to name what it reads and writes."""
    from safetensors.torch import save_file

    cfg, version = transcoder.cfg, saelens_version()
    known = {"sae_lens_version": version, "sae_lens_training_version": version, **vars(cfg.metadata)}
    written = {
        "architecture": cfg.architecture(),
        **{key: getattr(cfg, key) for key in ("d_in", "d_sae", "d_out")},
        "dtype": str(transcoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": known,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in transcoder.state_dict().items()}
    weights, config = SAE_FILES
    save_file(tensors, folder / weights)
    (folder / config).write_text(json.dumps(written), encoding="utf-8")


def save_for_circuit_tracer(weights: Mapping[int, Mapping[str, Tensor]], folder: Path, model_name: str) -> None:
    """Write transcoders that read mlp_in and write mlp_out, one file a layer and config.yaml, in place of ``folder``.

    Args:
        weights: by layer, of all layers from 0 on: W_enc [D, S], W_dec [S, O], b_enc, b_dec, threshold and W_skip
            [O, D], as SAELens has them.

    Raises:
        InputError: the disk is full or not writable.
    """
    from safetensors.torch import save_file

    named = {"threshold": "activation_function.threshold"}
    with whole_folder(folder) as part:
        for layer, found in weights.items():
            tensors = {**found, "W_enc": found["W_enc"].T}
            made = {named.get(name, name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(made, part / f"layer_{layer}.safetensors")
        config = {"model_name": model_name, **_CIRCUIT_TRACER}
        (part / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
