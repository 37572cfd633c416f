"""--to gguf: the adapter as llama.cpp reads it, by the gguf package: what its convert_lora_to_gguf.py writes.

Where llama.cpp is installed, it runs the adapter on the model it is for.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saelora.core.merging import plain_copy
from saelora.errors import InputError
from saelora.locks import scratch_folder
from saelora.manifest import version_of
from saelora.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from saelora.use.exports import llama_cpp
from saelora.use.exports.gguf_base import n_paired, paired, write_base
from saelora.use.exports.target import Export, check_adapter, check_equal, is_equal, largest, rows_of
from saelora.use.run import LoadedRun

FILE = "adapter.gguf"
# of transformers' model types
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2"}
ARCHITECTURES["gemma3_text"] = "gemma3"
_APART = 8  # tokens between the ends of the prompts that both sides are given
_WITHIN = 1e-3  # of the largest: llama.cpp looks Gemma's GELU up in a table of 16 bits
_DTYPES = {"auto": torch.float32, "float32": torch.float32, "float16": torch.float16}


def export(loaded: LoadedRun, folder: Path, dtype: str) -> Export:
    """Write the adapter, read it again, and run it by llama.cpp, where there is one, beside ours."""
    source = check_adapter(loaded, "gguf")
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype} is not written --to gguf: expected float32 or float16")
    peft = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    path, config = folder / FILE, loaded.loaded.model.config
    named = write_adapter(source, config, loaded.base, path, _DTYPES[dtype])
    again = {"weights read again": _check(path, named)}
    notes = [
        f"{FILE}: {len(named)} tensors, alpha {alpha_of(peft):g}; `llama-cli -m BASE.gguf --lora {FILE}`.",
        "It is the adapter alone (adapted_clean): llama.cpp has no SAE in the model.",
    ]
    found: dict[str, float] | str = f"no llama.cpp is installed beside saelora (pip install {llama_cpp.PACKAGE})"
    if version_of(llama_cpp.PACKAGE) is not None:
        exact = _DTYPES[dtype] == torch.float32
        found = _by_llama_cpp(loaded, ARCHITECTURES[config.model_type], path, exact)
    if not isinstance(found, str):
        return Export(found, [*notes, _run_note()])
    notes.append(f"Not run: {found}. Its tensors were read again by the gguf package and are those of the adapter.")
    return Export(again, notes, not_run=found)


def _run_note() -> str:
    return (
        f"Run by llama.cpp (of {llama_cpp.PACKAGE} {version_of(llama_cpp.PACKAGE)}) on this model in float32. On a "
        "quantised BASE.gguf it rounds activations too, so that model and adapter are less exact there."
    )


def _by_llama_cpp(loaded: LoadedRun, architecture: str, adapter: Path, exact: bool) -> dict[str, float] | str:
    """The largest differences of log-probabilities, without the adapter and with it; or why there are none to tell.

    Raises:
        InputError: llama.cpp computes something else with the adapter, though not without it; asked for if ``exact``.
    """
    needed, free = 4 * sum(p.numel() for p in loaded.model.parameters()), shutil.disk_usage(adapter.parent).free
    if free < needed:
        return f"its model in float32 takes {needed / 1e9:.1f} GB beside the export, {free / 1e9:.1f} GB are free there"
    prompts = [row[:, :n] for row in rows_of(loaded) for n in range(row.shape[1], 0, -_APART)]
    with scratch_folder(adapter.parent) as work:
        base = work / "base.gguf"
        try:
            write_base(plain_copy(loaded.model, merged=False), architecture, base)
        except InputError as error:
            return str(error)
        asked = [prompt[0].tolist() for prompt in prompts]
        theirs = torch.from_numpy(llama_cpp.log_probabilities(base, adapter, asked, loaded.n_embedded, work))
    difference = {}
    for variant, found in zip(("original", "adapted_clean"), theirs, strict=True):
        with loaded.as_variant(variant):
            ours = [loaded.logits(prompt)[0, -1].double().log_softmax(-1).cpu() for prompt in prompts]
        off = difference[f"of log-probabilities, {variant}, by llama.cpp"] = largest(ours, list(found))
        if variant == "original" and not is_equal(off, ours, _WITHIN):
            return f"llama.cpp, given this model, gives log-probabilities that are off by {off:.3g} without any adapter"
        if exact:
            check_equal(off, ours, "the adapter that llama.cpp reads", _WITHIN)
    return difference


def write_adapter(source: Path, config: Any, base: str, path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write PEFT's adapter in a folder for llama.cpp.

    Args:
        config: of the transformers model that it is for.
        base: that model's name.

    Returns:
        What was written, by llama.cpp's names.

    Raises:
        InputError: llama.cpp has no such adapters.
    """
    peft = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    architecture, model = _architecture(config.model_type, peft), config.get_text_config()
    named = {
        named_as(architecture, key, int(model.num_hidden_layers)): _paired(key, tensor, architecture, model).to(dtype)
        for key, tensor in load_file(source / ADAPTER_WEIGHTS).items()
    }
    _write(path, architecture, alpha_of(peft), named, base)
    return named


def _architecture(kind: str, peft: dict[str, Any]) -> str:
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
    """Rows of the query's and key's B as llama.cpp has those of the weights."""
    n_heads = n_paired(model, architecture, key) if ".lora_B." in key else None
    return tensor if n_heads is None else paired(tensor, n_heads)


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
