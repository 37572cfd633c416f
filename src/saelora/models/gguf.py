"""GGUF files as Hugging Face folders: converted once, kept in the cache; and the hashes that identify weights.

transformers dequantises a GGUF file at every load, which takes far longer than reading the result back.
"""

import hashlib
import io
import logging
import shutil
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import __version__ as transformers_version

from saelora.errors import InputError, first_line
from saelora.files import write_whole
from saelora.models.assets import cache_dir, kept
from saelora.models.gguf_config import stated_config
from saelora.models.gguf_file import GGUFFile, merge, read_gguf, shards_of
from saelora.models.gguf_tensors import FACTORS
from saelora.records import JsonObject

logger = logging.getLogger(__name__)

_VERSION = 2  # of the conversion: what an earlier one made may be wrong, and is not taken from the cache
_SPARE_BYTES = 64 << 20  # tokenizer, configuration, and a disk that is not filled to the brim


def converted(gguf: Path) -> Path:
    """The folder with a GGUF model and its tokenizer in safetensors form, made on first use.

    Args:
        gguf: the file, or any file of a split model.

    Dequantised weights are stored in 16 bits where that is exact, else in float32 (4 bytes a parameter: 540 MB for
    135M parameters). The folder appears complete or not at all, also when several processes convert at once.

    Raises:
        InputError: not a readable GGUF, one that is not understood whole, or too little room in the cache.
    """
    paths = shards_of(gguf)
    target = cache_dir() / "converted" / f"{gguf.stem}-{gguf_sha256(gguf)[:16]}-v{_VERSION}"
    if target.is_dir():
        return target
    file = read_gguf(paths)
    config = stated_config(file)
    _check_room(file)
    logger.info("converting %s once, into %s", gguf.name, target)

    def make(temporary: Path) -> Path:
        whole = paths[0]
        if len(paths) > 1:
            whole = temporary / "whole.gguf"
            merge(file, whole)
        return _convert(file, whole, config, temporary / "model")

    return kept(target, make)


def gguf_sha256(gguf: Path) -> str:
    """What identifies a GGUF model: the sha256 of its file, or of those of all its files."""
    hashes = [file_sha256(path) for path in shards_of(gguf)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _convert(file: GGUFFile, whole: Path, stated: JsonObject, folder: Path) -> Path:
    gguf = file.paths[0]
    try:
        source: JsonObject = {"pretrained_model_name_or_path": whole.parent, "gguf_file": whole.name}
        with redirect_stderr(io.StringIO()):  # the converter's progress bar cannot be switched off
            config = AutoConfig.from_pretrained(**source)
            if config.model_type == "mistral":  # how transformers understands a llama that is named so
                config = AutoConfig.for_model(
                    "llama", **{k: v for k, v in config.to_dict().items() if k != "model_type"}
                )
            for name, value in stated.items():
                if getattr(config, name, None) != value:
                    setattr(config, name, value)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source, config=config, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(**source)
    except MemoryError:
        raise
    except Exception as error:  # the reader and the converter raise many kinds, all about this file
        raise InputError(
            f"{gguf} cannot be converted: {first_line(error)}; give the model's Hugging Face folder instead"
        ) from error
    model, info = loaded
    _check_whole(file, model, info)
    # transformers refuses to save what it regards as quantised, though the weights are plain floats by now
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model = model.to(_smallest_exact_dtype(model))
    folder.mkdir()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _check_whole(file: GGUFFile, model: Any, info: JsonObject) -> None:
    """Every parameter from the file, and every number of the file in a parameter, by their count."""
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    n_model = sum(parameter.numel() for parameter in model.parameters())
    n_file = sum(int(t.n_elements) for name, t in file.tensors.items() if name not in FACTORS)
    if "output.weight" in file.tensors and model.config.tie_word_embeddings:
        n_file -= int(file.tensors["output.weight"].n_elements)
    if missing or extra or n_model != n_file:
        example = f" ({[*missing, *extra][0]})" if missing or extra else ""
        raise InputError(
            f"{file.paths[0]} cannot be converted: it holds {n_file} weights, transformers {transformers_version} made "
            f"a model of {n_model}{example}; give the model's Hugging Face folder instead"
        )


def _smallest_exact_dtype(model: torch.nn.Module) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(parameter.to(dtype).float(), parameter) for parameter in model.parameters()):
            return dtype
    return torch.float32


def _check_room(file: GGUFFile) -> None:
    needed = 4 * file.n_parameters + (file.n_bytes if len(file.paths) > 1 else 0) + _SPARE_BYTES
    free = shutil.disk_usage(_made(cache_dir())).free
    if free < needed:
        raise InputError(
            f"converting {file.paths[0].name} needs {needed / 1e6:.0f} MB in {cache_dir()}, {free / 1e6:.0f} MB are "
            f"free: make room or set SAELORA_CACHE to another folder"
        )


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, remembered in the cache by path, size and time of change."""
    path = path.resolve()
    stat = path.stat()
    key = hashlib.sha256(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_dir() / "hashes" / key
    if memo.is_file():
        return memo.read_text()
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    with suppress(InputError):  # the memo only saves time: without room for it the hash is computed again
        write_whole(_made(memo.parent) / key, digest.encode())
    return digest


def folder_sha256(folder: Path) -> str:
    """sha256 over the configuration and weight files of a model folder, by name and content."""
    files = [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error}; set SAELORA_CACHE to a folder that can be written") from error
    return folder
