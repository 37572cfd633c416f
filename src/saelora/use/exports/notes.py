"""The README of an exported folder."""

from __future__ import annotations

from saelora.identity import kind_of, sae_names
from saelora.reporting.format import one_line
from saelora.use.exports import policy
from saelora.use.exports.target import TEXTS, Export
from saelora.use.run import LoadedRun

_TITLES = {
    "merged": "{base} with its adapter merged",
    "peft": "Adapter of {base}",
    "saelens": "SAEs of {base}",
    "transformer-lens": "{base} with its adapter merged, for TransformerLens",
    "nnsight": "{base} with its adapter merged, for nnsight",
    "neuronpedia": "Latents of {base} for Neuronpedia",
    "gguf": "Adapter of {base} for llama.cpp",
}


def readme(loaded: LoadedRun, to: str, found: Export) -> bytes:
    """What it is, what was seen when it was run, and how it is run right."""
    base, kind = one_line(loaded.base), kind_of(*loaded.about.saes)
    seen = "\n".join(f"| {what} | {value:.3g} |" for what, value in found.difference.items())
    about = "\n".join(f"- {one_line(note)}" for note in found.notes)
    text = f"""# {_TITLES[to].format(base=base)}

Exported by saelora from a run on `{base}`, whose figures are of the model run through these {kind.many}:
{one_line(sae_names(loaded.about.saes))}.

{policy.in_words(loaded)} Text is to begin with BOS where the tokenizer has one.

| compared on {len(TEXTS)} short texts | largest difference |
|---|---|
{seen}

{about}
"""
    return text.encode()
