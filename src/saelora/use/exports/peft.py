"""--to peft: the adapter alone, with what servers of adapters need to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from saelora.core import lora
from saelora.core.merging import plain_copy
from saelora.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter
from saelora.use.exports.target import Export, check_adapter, check_equal, largest, rows_of
from saelora.use.run import LoadedRun

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes; 16 by default
_LORAX = 64  # TGI's and LoRAX's kernels go to this rank


def export(loaded: LoadedRun, folder: Path, dtype: str) -> Export:
    """Write the adapter's two files, load them by PEFT on a bare copy of the model, and run both."""
    source = check_adapter(loaded, "peft")
    tensors = load_file(source / ADAPTER_WEIGHTS)
    target = None if dtype == "auto" else getattr(torch, dtype)
    if target is not None:
        tensors = {name: tensor.to(target) for name, tensor in tensors.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = loaded.base
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    rows = rows_of(loaded)
    with loaded.adapted_clean():
        ours = [loaded.logits(row) for row in rows]
    read = load_adapter(plain_copy(loaded.model, merged=False), folder)
    with torch.no_grad():
        difference = largest(ours, [read(input_ids=row).logits for row in rows])
    if target in (None, torch.float32):
        check_equal(difference, ours, "the adapter that PEFT reads")
    return Export({"adapted_clean, read by PEFT": difference}, servers(loaded, config, tensors))


def servers(loaded: LoadedRun, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> list[str]:
    """What vLLM, TGI and llama.cpp are to be told, or refuse."""
    ranks = [int(t.shape[0]) for name, t in tensors.items() if "lora_A" in name] or [int(config["r"])]
    rank, base = max(ranks), loaded.base
    layers = lora.adapted_layers(loaded.model)
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    found = [
        f"Rank {rank}, layers {layers[0]} to {layers[-1]} ({len(layers)} of them), {kinds}.",
        "Servers of adapters have no SAE in the model: they serve the variant adapted_clean.",
    ]
    if config.get("use_dora"):
        return [*found, "It is DoRA, which vLLM, TGI and llama.cpp do not read: export --to merged for them."]
    fits = next((each for each in VLLM_RANKS if each >= rank), None)
    if fits is None:
        found.append(f"vLLM takes ranks up to {VLLM_RANKS[-1]}: export --to merged for it.")
    else:
        why = " (its default, 16, would refuse this rank)" if fits > 16 else ""
        found.append(
            f"vLLM: `vllm serve {base} --enable-lora --max-lora-rank {fits} --lora-modules adapted=FOLDER`{why}; "
            "it casts the adapter to the model's dtype."
        )
    found.append(
        f"TGI: `--lora-adapters adapted=FOLDER`{f'; above rank {_LORAX} export --to merged' if rank > _LORAX else ''}."
    )
    found.append("llama.cpp: export --to gguf, then `llama-cli -m BASE.gguf --lora adapter.gguf`.")
    return found
