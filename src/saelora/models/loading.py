"""Load a frozen causal language model and its tokenizer, from the hub, a folder or a GGUF file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from saelora.errors import InputError
from saelora.models.assets import resolve_asset
from saelora.models.gguf import converted, folder_sha256, gguf_sha256
from saelora.models.gguf_file import only_model
from saelora.models.remedies import check_files, explain
from saelora.models.vocabulary import check_tokenizer, n_embedded

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}
# weights that no language model uses: buffers of older versions, towers for other senses, heads of other tasks, blocks
# that predict further tokens, scales of a quantised cache
_NEUTRAL = re.compile(
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$"
    r"|(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|mm_projector|audio_tower|embed_vision|embed_audio"
    r"|mtp|v_head|value_head|score|classifier)\."
    r"|\.(k|v|kv)_scale$"
)
_DECODER_ARCHITECTURES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with every parameter frozen, its tokenizer, and what identifies them.

    ref: as the user gave it.  revision: the hub commit.  fingerprint: sha256 of a GGUF file or of a local folder's
    weights and configuration; None for a hub model, which its revision identifies.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ref: str
    revision: str | None
    fingerprint: str | None
    dtype: torch.dtype

    @property
    def n_embedded(self) -> int:
        """Token ids that the model has a row for: 0 to n - 1."""
        return n_embedded(self.model)


def load_model(
    ref: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> LoadedModel:
    """Load a hub model, a local folder, a .gguf file (converted once into the cache) or the default model by name.

    No code from the model's repository is run. Attention is the model's own choice (SDPA where it supports it).

    Raises:
        InputError: nothing is there, access is refused, weights are damaged or missing, or it is no causal decoder.
    """
    device = pick_device(device)
    dtype = resolve_dtype(dtype, device)
    source, fingerprint = _locate(ref, revision)
    commit, folder = None, Path(source) if fingerprint is not None else None
    options: dict[str, Any] = {"trust_remote_code": False}  # transformers would ask, at a prompt
    with quiet_transformers():
        try:
            if fingerprint is None:  # a branch may move: everything is read at the commit it has now
                commit, folder = _commit(ref, revision)
                options["revision"] = commit
            _check_config(AutoConfig.from_pretrained(source, **options), ref)
            if fingerprint is not None:
                check_files(Path(source), ref)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **options,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # hub, safetensors, tokenizers and transformers share no base class for bad input
            raise explain(ref, error, device.type, folder) from error
    model, info = loaded
    _check_complete(model, info, ref)
    check_tokenizer(tokenizer, model, ref)
    model = model.to(device).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, ref, commit, fingerprint, dtype)


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device named; "auto" is CUDA where there is one, else Apple's, else the CPU.

    Raises:
        InputError: no such kind of device, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not known: expected auto, cpu, cuda, cuda:N or mps") from error
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= n_cuda:
        raise InputError(f"device {device} is not there: torch sees {n_cuda} CUDA devices, use --device auto or cpu")
    if chosen.type == "mps" and not _has_mps():
        raise InputError("device mps is not there: torch sees no Apple GPU, use --device auto or cpu")
    return chosen


def resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """The dtype named; "auto" is bfloat16 on CUDA and float32 elsewhere, where bfloat16 is slow or absent.

    Raises:
        InputError: no floating dtype of that name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not known: expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and warnings; what they would say about a damaged model is raised instead."""
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _locate(ref: str, revision: str | None) -> tuple[str, str | None]:
    """What transformers can load, and the fingerprint of local files (None for a hub name)."""
    path = Path(resolve_asset(ref)).expanduser()
    if not path.exists():
        if ref.startswith((".", "/", "~")) or ref.endswith((".gguf", "/")) or ref.count("/") > 1 or "\\" in ref:
            raise InputError(f"model {ref} does not exist: expected a folder, a .gguf file or a hub name owner/name")
        return ref, None
    if revision is not None:
        raise InputError(f"model {ref} is local: a revision is for hub models only, leave it out")
    if path.is_dir() and not (path / "config.json").is_file():
        path = _only_gguf(path, ref)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"model {ref} is a file but no .gguf: expected a folder, a .gguf file or a hub name")
        with quiet_transformers():
            return str(converted(path)), gguf_sha256(path)
    if (path / "adapter_config.json").is_file():
        raise InputError(f"model {ref} holds an adapter: give the base model here, and the adapter as the adapter")
    return str(path), folder_sha256(path)


def _commit(ref: str, revision: str | None) -> tuple[str, Path]:
    """The commit that a hub model is read at, and the folder its files are kept in."""
    file = cached_file(ref, "config.json", revision=revision or "main")
    return extract_commit_hash(file, None) or revision or "main", Path(str(file)).parent


def _only_gguf(folder: Path, ref: str) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if (model := only_model(found)) is not None:
        return model
    what = "neither config.json nor a .gguf file" if not found else f"{len(found)} .gguf files and no config.json"
    adapter = " (it is an adapter: give its base model)" if (folder / "adapter_config.json").is_file() else ""
    raise InputError(f"model folder {ref} holds {what}{adapter}: give a model folder or one .gguf file")


def _check_config(config: PretrainedConfig, ref: str) -> None:
    architectures = getattr(config, "architectures", None) or []
    encoder = getattr(config, "is_decoder", None) is False and not any(
        name.endswith(_DECODER_ARCHITECTURES) for name in architectures
    )
    if config.is_encoder_decoder or encoder:
        kind = "/".join(architectures) or config.model_type
        raise InputError(f"model {ref} is {kind}: expected a decoder-only causal language model such as Llama or GPT-2")
    quantised = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method", "bitsandbytes") if isinstance(quantised, dict) else quantised.quant_method
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if quantised and method not in known:
        raise InputError(
            f"model {ref} is quantised by {method!r}, which transformers {transformers_version} passes over: expected "
            f"one of {', '.join(sorted(known))}, or an unquantised copy"
        )


def _check_complete(model: Any, info: dict[str, Any], ref: str) -> None:
    """A parameter that the checkpoint lacks would be random, one that the model lacks would be dropped unseen."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(f"model {ref} holds an adapter: give the base model here, and the adapter as the adapter")
    if other := sorted(str(key[0]) + f" {tuple(key[1])}, expected {tuple(key[2])}" for key in info["mismatched_keys"]):
        raise InputError(
            f"model {ref} has {len(other)} weights of another shape than its config.json says ({other[0]}): give the "
            f"config.json that belongs to them"
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"model {ref} lacks {len(missing)} weights ({missing[0]}, ...): its config.json asks for them; give the "
            f"config.json that belongs to its weights, or weights that are whole"
        )
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    if left := sorted(key for key in info["unexpected_keys"] if not _is_neutral(key, tied)):
        raise InputError(
            f"model {ref} holds {len(left)} weights that a {model.config.model_type} model of transformers "
            f"{transformers_version} has no place for ({left[0]}, ...): they would be dropped; give the config.json "
            f"that belongs to them"
        )


def _is_neutral(key: str, tied: bool) -> bool:
    return bool(_NEUTRAL.search(key)) or (tied and key.endswith("lm_head.weight"))
