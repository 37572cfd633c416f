"""Packs a trained set of transcoders of the default model into src/saelora/package_data.

saelora train-sae --config recipes/smollm/transcoders.yaml --out SET && python .ci/transcoders.py SET
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from saelora.models.assets import DEFAULT_MODEL, default_text, default_transcoders_file
from saelora.models.loading import load_model
from saelora.models.packed import pack

_ROWS, _CONTEXT = 32, 256  # of text, for the means of what the MLPs read; the first token of a row, BOS, is left out


def mean_reads() -> dict[str, np.ndarray]:
    """What each MLP of the default model reads, on average over the default text."""
    loaded = load_model(DEFAULT_MODEL)
    sums: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(loaded.model.model.layers):

        def see(_: object, args: tuple[torch.Tensor, ...], name: str = f"layers.{i}.mlp_out") -> None:
            sums[name] = sums.get(name, 0) + args[0][:, 1:].double().sum(dim=(0, 1))

        layer.mlp.register_forward_pre_hook(see)
    text = "\n".join(path.read_text() for path in sorted(default_text().glob("*.txt")))
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids[0]
    starts = torch.linspace(0, len(ids) - _CONTEXT, _ROWS).long()
    rows = torch.stack([ids[start : start + _CONTEXT] for start in starts])
    rows[:, 0] = loaded.tokenizer.bos_token_id
    with torch.no_grad():
        for batch in rows.split(4):
            loaded.model(batch)
    return {name: (total / (_ROWS * (_CONTEXT - 1))).float().numpy() for name, total in sums.items()}


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), default_transcoders_file()
    found = {}
    for folder in sorted(source.glob("layers.*.mlp_out"), key=lambda path: int(path.name.split(".")[1])):
        weights = load_file(folder / "sae_weights.safetensors")
        found[folder.name] = (
            json.loads((folder / "cfg.json").read_text()),
            {name: tensor.float().numpy() for name, tensor in weights.items()},
        )
    pack(found, mean_reads(), target)
    print(f"{target}: {len(found)} transcoders, {target.stat().st_size / 1e6:.1f} MB")
