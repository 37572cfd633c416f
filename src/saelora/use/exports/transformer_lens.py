"""--to transformer-lens: the adapted model, its SAEs, and a script that runs them in TransformerLens's bridge."""

from __future__ import annotations

from pathlib import Path

from saelora.use.exports import policy, scripted
from saelora.use.exports.target import Export
from saelora.use.run import LoadedRun

SCRIPT = "bridged.py"


def export(loaded: LoadedRun, folder: Path, dtype: str) -> Export:
    """Write model, SAEs and script, and run the script where TransformerLens is installed."""
    scripted.check_scripted(loaded, "transformer-lens")
    return scripted.export(loaded, folder, dtype, SCRIPT, script(loaded), "transformer-lens")


def script(loaded: LoadedRun) -> str:
    """Python that hooks the SAEs into a TransformerBridge, whose weights are transformers' own."""
    sites = "".join(f"    {hookpoint.tl_name!r}: {str(hookpoint)!r},\n" for hookpoint in loaded.hookpoints)
    return f'''"""Run a model through its SAEs with the token policy of its run, by TransformerLens 3 or later.

`pip install transformer-lens saelora`, then

    model = load()
    with spliced(model):
        logits, cache = model.run_with_cache(ids)  # or model(ids), model.generate(...)

{policy.in_words(loaded)} SAELens's own run_with_saes replaces every position and gives
other logits. One text at a time, without padding; text is to begin with BOS where the tokenizer has one. The bridge is
not to be put into compatibility mode: that folds norms and centres weights, for which the SAEs were not made.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from saelora import load_sae
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
{policy.constants(loaded)}
SITES = {{  # hook -> folder of the SAE
{sites}}}
SAES = {{hook: load_sae(str(HERE / "{scripted.SAES}" / name), hookpoint=name).sae for hook, name in SITES.items()}}


def load():
    """The model with its adapter merged, in the precision it was written in, on the CPU."""
    plain = AutoModelForCausalLM.from_pretrained(HERE, dtype="auto").eval()
    return TransformerBridge.boot_transformers(
        str(HERE), hf_model=plain, tokenizer=AutoTokenizer.from_pretrained(HERE), dtype=plain.dtype
    )


@contextmanager
def spliced(model):
    """The SAEs are in, as long as the block lasts."""
    kept = {{}}

{policy.READ_TOKENS}

    def through(sae):
        def replaced(x, hook):
            flat = x.flatten(2)  # heads, where the hook has them apart
            recon = sae.decode(sae.encode(flat.float())).to(x.dtype)
            return torch.where(kept["exempt"], flat, recon).reshape(x.shape)

        return replaced

    handle = model.original_model.get_decoder().register_forward_pre_hook(read_tokens, with_kwargs=True)
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=[(name, through(sae)) for name, sae in SAES.items()]):
            yield
    finally:
        handle.remove()


def logits(model, ids, through_saes=True):
    """Logits [1, seq, vocabulary] of token ids [1, seq]."""
    with torch.no_grad():
        if not through_saes:
            return model(ids)
        with spliced(model):
            return model(ids)


{scripted.MAIN}'''
