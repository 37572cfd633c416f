"""Transcoders of many layers in one small file: GGUF, so that its own package quantises the weights and reads them.

Tensors are named layers.N.mlp_out.W_enc and so on; W_enc lies transposed, so that every row is one latent's. The key
saelora.config.NAME holds a transcoder's configuration as SAELens writes it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saelora.errors import InputError
from saelora.files import write_whole
from saelora.models.assets import cache_dir, kept
from saelora.models.gguf import file_sha256
from saelora.models.gguf_file import read_gguf

ARCHITECTURE = "saelora-transcoders"
_KEY = "saelora.config."
_VERSION = 1  # of what unpacking makes


def unpacked(packed: Path) -> Path:
    """The folder with a packed file's transcoders, each in SAELens's format, made on first use.

    Weights are rounded to bfloat16: far finer than what they are packed in.

    Raises:
        InputError: not such a file, or the cache cannot be written.
    """
    target = cache_dir() / "converted" / f"{packed.stem}-{file_sha256(packed)[:16]}-v{_VERSION}"
    return kept(target, lambda temporary: _unpack(packed, temporary / "set"))


def _unpack(packed: Path, folder: Path) -> Path:
    import torch
    from safetensors.torch import save

    file = read_gguf([packed])
    if file.architecture != ARCHITECTURE:
        raise InputError(f"{packed} is a GGUF file of {file.architecture!r}, expected {ARCHITECTURE!r}")
    for key, config in file.metadata.items():
        if not key.startswith(_KEY):
            continue
        place = folder / key.removeprefix(_KEY)
        place.mkdir(parents=True)
        weights = {}
        for name in file.tensors:
            where, _, part = name.rpartition(".")
            if where == place.name:
                values = torch.from_numpy(file.values(name).copy())
                weights[part] = (values.T if part == "W_enc" else values).to(torch.bfloat16).contiguous()
        write_whole(place / "sae_weights.safetensors", save(weights))
        write_whole(place / "cfg.json", json.dumps(json.loads(str(config)), indent=1).encode())
    return folder


def pack(
    transcoders: Mapping[str, tuple[Mapping[str, Any], Mapping[str, np.ndarray]]],
    mean_reads: Mapping[str, np.ndarray],
    target: Path,
) -> None:
    """Write transcoders with their matrices in 4 bits (Q4_0) and all else in float32.

    Rounding shifts what a matrix makes of the mean of its input, which the biases take back.

    Args:
        transcoders: configuration and weights (W_enc [D, S], b_enc [S], W_dec [S, O], b_dec [O], threshold [S], and
            W_skip [O, D] where there is one; float32) by name.
        mean_reads: the mean [D] of what each reads.
        target: the file.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType.Q4_0
    writer = GGUFWriter(target, ARCHITECTURE)
    for name, (config, weights) in transcoders.items():
        writer.add_string(_KEY + name, json.dumps(config))
        shifts = {"W_enc": "b_enc", "W_skip": "b_dec"}
        biases = {part: values for part, values in weights.items() if values.ndim == 1}
        for part, values in weights.items():
            if values.ndim == 1:
                continue
            rows = np.ascontiguousarray(values.T if part == "W_enc" else values)
            packed = quantize(rows, kind)
            writer.add_tensor(f"{name}.{part}", packed, raw_dtype=kind)
            if part in shifts:
                lost = rows - dequantize(packed, kind)
                biases[shifts[part]] = biases[shifts[part]] + lost @ mean_reads[name]
        for part, values in biases.items():
            writer.add_tensor(f"{name}.{part}", np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
