"""--to gguf: the adapter as llama.cpp reads it, by the gguf package: what its convert_lora_to_gguf.py writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saelora.errors import InputError
from saelora.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from saelora.use.exports.target import Export, check_adapter
from saelora.use.run import LoadedRun

FILE = "adapter.gguf"
# of transformers' model types
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2"}
ARCHITECTURES["gemma3_text"] = "gemma3"
_DTYPES = {"auto": torch.float32, "float32": torch.float32, "float16": torch.float16}


def export(loaded: LoadedRun, folder: Path, dtype: str) -> Export:
    """Write the adapter and read it again; no llama.cpp is run."""
    source = check_adapter(loaded, "gguf")
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype} is not written --to gguf: expected float32 or float16")
    peft = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    architecture, model = _architecture(loaded, peft), loaded.loaded.model.config.get_text_config()
    tensors = load_file(source / ADAPTER_WEIGHTS)
    named = {
        named_as(architecture, key, int(model.num_hidden_layers)): _paired(key, tensor, architecture, model)
        for key, tensor in tensors.items()
    }
    named = {name: tensor.to(_DTYPES[dtype]) for name, tensor in named.items()}
    _write(folder / FILE, architecture, alpha_of(peft), named, loaded.base)
    largest = _check(folder / FILE, named)
    why = "no llama.cpp is installed beside saelora"
    notes = [
        f"{FILE}: {len(named)} tensors, alpha {alpha_of(peft):g}; `llama-cli -m BASE.gguf --lora {FILE}`.",
        "It is the adapter alone (adapted_clean): llama.cpp has no SAE in the model.",
        f"Not run: {why}. Its tensors were read again by the gguf package and are those of the adapter.",
    ]
    return Export({"weights read again": largest}, notes, not_run=why)


def _architecture(loaded: LoadedRun, peft: dict[str, Any]) -> str:
    kind = loaded.loaded.model.config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(
            f"adapters of {kind} models are not written --to gguf: expected {', '.join(ARCHITECTURES)}; export --to "
            "merged, and let llama.cpp's convert_hf_to_gguf.py convert that"
        )
    for name in ("use_dora", "rank_pattern", "alpha_pattern"):
        if peft.get(name):
            raise InputError(f"llama.cpp reads no adapter with {name}: export --to merged instead")
    return ARCHITECTURES[kind]


def alpha_of(peft: dict[str, Any]) -> float:
    """What llama.cpp divides by the rank to scale the product; PEFT's rank-stabilised LoRA divides by its root."""
    alpha = float(peft["lora_alpha"])
    return alpha * math.sqrt(peft["r"]) if peft.get("use_rslora") else alpha


def named_as(architecture: str, key: str, n_layers: int) -> str:
    """PEFT's name of a tensor -> llama.cpp's.

    Raises:
        InputError: llama.cpp has no such weight.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(each for each, name in MODEL_ARCH_NAMES.items() if name == architecture)
    plain = key.removeprefix("base_model.model.")
    for side in ("A", "B"):
        weight = plain.removesuffix(f".lora_{side}.weight")
        if weight != plain:
            found = get_tensor_name_map(arch, n_layers).get_name(weight)
            if found is not None:
                return f"{found}.weight.lora_{side.lower()}"
    raise InputError(f"llama.cpp has no place for {key} in {architecture} models: export --to merged instead")


def _paired(key: str, tensor: Tensor, architecture: str, model: Any) -> Tensor:
    """Rows of the query's and key's B as llama.cpp has those of the weights: in llama models it rotates neighbours."""
    name = next((each for each in ("q_proj", "k_proj") if f".{each}.lora_B" in key), None)
    if architecture != "llama" or name is None:
        return tensor
    n_heads = model.num_attention_heads if name == "q_proj" else model.num_key_value_heads
    n_out = tensor.shape[0]
    return tensor.reshape(n_heads, 2, n_out // n_heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def _write(path: Path, architecture: str, alpha: float, tensors: dict[str, Tensor], base: str) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name(f"{base} adapted by saelora")
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(path: Path, tensors: dict[str, Tensor]) -> float:
    """The largest difference between what was to be written and what the file holds."""
    from gguf import GGUFReader

    read = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    if read.keys() != tensors.keys():
        raise InputError(f"{path.name} holds other tensors than were written: report this")
    return max(float(np.abs(read[name].astype(np.float64) - t.double().numpy()).max()) for name, t in tensors.items())
