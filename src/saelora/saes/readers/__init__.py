"""One module a file format; each turns a local folder into the parts of an SAELens SAE."""

from collections.abc import Callable
from pathlib import Path

from saelora.saes.readers import (
    circuit_tracer,
    cross_layer,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    saelens,
    single_file,
    sparsify,
)
from saelora.saes.readers.common import Parts
from saelora.saes.transcoder import TranscoderParts

# (folder, name as the user or the hub knows it, which may tell the hookpoint) -> parts
READERS: dict[str, Callable[[Path, str], Parts | TranscoderParts]] = {
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "gemma_scope": gemma_scope.read,
    "llama_scope": llama_scope.read,
    "dictionary_learning": dictionary_learning.read,
    "circuit_tracer": circuit_tracer.read,
    "circuit_tracer_clt": cross_layer.read_circuit_tracer,
    "gemma_scope_clt": cross_layer.read_gemma_scope,
    "qwen_scope": single_file.read_qwen_scope,
    "goodfire": single_file.read_goodfire,
}

__all__ = ["READERS", "Parts"]
