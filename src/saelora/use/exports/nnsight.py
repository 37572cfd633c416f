"""--to nnsight: the adapted model, its SAEs, and a script that traces it through them."""

from __future__ import annotations

import re
from pathlib import Path

from saelora.use.exports import policy, scripted
from saelora.use.exports.target import Export
from saelora.use.run import LoadedRun

SCRIPT = "traced.py"


def export(loaded: LoadedRun, folder: Path, dtype: str) -> Export:
    """Write model, SAEs and script, and run the script where nnsight is installed."""
    scripted.check_scripted(loaded, "nnsight")
    return scripted.export(loaded, folder, dtype, SCRIPT, script(loaded), "nnsight")


def script(loaded: LoadedRun) -> str:
    """Python that splices the SAEs into traces of nnsight, in the order in which a pass meets them."""
    lines = []
    for hookpoint in scripted.in_order(loaded.hookpoints):
        name, side = policy.site_of(loaded, hookpoint)
        place = f"{_envoy(name)}.{side}"
        lines += [
            f"    x = {place} if isinstance({place}, torch.Tensor) else {place}[0]  # {hookpoint}",
            f"    latents = found[{str(hookpoint)!r}] = SAES[{str(hookpoint)!r}].encode(x.float())",
            f"    x = torch.where(exempt, x, SAES[{str(hookpoint)!r}].decode(latents).to(x.dtype))",
            f"    {place} = x if isinstance({place}, torch.Tensor) else (x, *{place}[1:])",
        ]
    sites = "\n".join(lines)
    embedding = _envoy(policy.name_of(loaded, loaded.loaded.model.get_input_embeddings()))
    names = [str(hookpoint) for hookpoint in loaded.hookpoints]
    return f'''"""Trace a model through its SAEs with the token policy of its run, by nnsight 0.8 or later.

`pip install nnsight saelora`, then

    model = load()
    with model.trace(ids):  # token ids [1, seq], or text that begins with BOS where the tokenizer has one
        latents = splice(model)[{names[0]!r}].save()
        out = model.output.logits.save()

{policy.in_words(loaded)} Hooks that replace every position give other logits.
One text at a time, without padding.
"""

from pathlib import Path

import torch
from nnsight import TransformersModel
from saelora import load_sae

HERE = Path(__file__).parent
{policy.constants(loaded)}
SAES = {{name: load_sae(str(HERE / "{scripted.SAES}" / name), hookpoint=name).sae for name in {names}}}


def load():
    """The model with its adapter merged, in the precision it was written in, on the CPU."""
    return TransformersModel(str(HERE), task="text-generation", device_map="cpu", dtype="auto", dispatch=True)


def splice(model, start=0):
    """Inside a trace: put the SAEs in; gives their latents [1, seq, d_sae] by name.

    start: tokens before those of this pass, where a key-value cache holds them.
    """
    ids, found = {embedding}.input, {{}}
    exempt = torch.isin(ids, torch.tensor(EXEMPT_IDS, dtype=ids.dtype, device=ids.device))
    exempt = (exempt | (torch.arange(start, start + ids.shape[1], device=ids.device) < EXEMPT_FIRST)).unsqueeze(-1)
{sites}
    return found


def logits(model, ids, through_saes=True):
    """Logits [1, seq, vocabulary] of token ids [1, seq]."""
    with torch.no_grad(), model.trace(ids):
        if through_saes:
            splice(model)
        out = model.output.logits.save()
    return out


{scripted.MAIN}'''


def _envoy(name: str) -> str:
    """model.layers.12.mlp -> model.model.layers[12].mlp"""
    return "model." + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", name)
