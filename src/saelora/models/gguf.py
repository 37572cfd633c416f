"""GGUF files as Hugging Face folders: converted once, kept in the cache; and the hashes that identify weights.

transformers dequantises a GGUF file at every load, which takes far longer than reading the result back.
"""

import hashlib
import io
import logging
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelora.errors import InputError
from saelora.models.assets import cache_dir, publish

logger = logging.getLogger(__name__)

_SPARE_BYTES = 64 << 20  # tokenizer, configuration, and a disk that is not filled to the brim


def converted(gguf: Path) -> Path:
    """The folder with a GGUF file's model and tokenizer in safetensors form, made on first use.

    Dequantised weights are stored in 16 bits where that is exact, else in float32 (4 bytes a parameter: 540 MB for
    135M parameters). The folder appears complete or not at all, also when several processes convert at once.

    Raises:
        InputError: not a readable GGUF, an architecture transformers cannot convert, or too little room in the cache.
    """
    target = cache_dir() / "converted" / f"{gguf.stem}-{file_sha256(gguf)[:16]}"
    if target.is_dir():
        return target
    _check_room(gguf)
    logger.info("converting %s once, into %s", gguf.name, target)
    try:
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=_made(target.parent)) as temporary:
            publish(_convert(gguf, Path(temporary) / "model"), target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error}; set SAELORA_CACHE to a folder with room") from error
    return target


def _convert(gguf: Path, folder: Path) -> Path:
    try:
        source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        with redirect_stderr(io.StringIO()):  # the converter's progress bar cannot be switched off
            model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # the reader and the converter raise many kinds, all about this file
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{gguf} cannot be converted: {said}; give the model's Hugging Face folder instead") from error
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


def _smallest_exact_dtype(model: torch.nn.Module) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(parameter.to(dtype).float(), parameter) for parameter in model.parameters()):
            return dtype
    return torch.float32


def _check_room(gguf: Path) -> None:
    from gguf import GGUFReader

    try:
        n_parameters = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
    except Exception as error:  # on a damaged file the reader fails wherever its offsets happen to point
        raise InputError(f"{gguf} is not a readable GGUF file: it is damaged or incomplete, fetch it again") from error
    needed = 4 * n_parameters + _SPARE_BYTES
    free = shutil.disk_usage(_made(cache_dir())).free
    if free < needed:
        raise InputError(
            f"converting {gguf.name} needs {needed / 1e6:.0f} MB in {cache_dir()}, {free / 1e6:.0f} MB are free: make "
            f"room or set SAELORA_CACHE to another folder"
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
    try:
        with tempfile.TemporaryDirectory(prefix=".hash-", dir=_made(memo.parent)) as temporary:
            written = Path(temporary) / key
            written.write_text(digest)
            written.replace(memo)
    except OSError:
        pass  # the memo only saves time: without room for it the hash is computed again
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
