"""Why a model does not load, and what helps: each cause its own line."""

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, errors
from safetensors import SafetensorError, safe_open
from transformers import __version__ as transformers_version

from saelora.errors import InputError, first_line

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_PARSED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_INDEX = "model.safetensors.index.json"


def check_files(folder: Path, ref: str) -> None:
    """Refuse a model folder in which a file is damaged or absent, by that file's name.

    Configurations are parsed, of weights the headers are read.

    Raises:
        InputError: the first such file.
    """
    for name in (*_PARSED, _INDEX):
        if (folder / name).is_file():
            _check_parsed(folder / name, ref)
    weights = sorted(folder.glob("*.safetensors"))
    named = _named_by_index(folder / _INDEX) if (folder / _INDEX).is_file() else set()
    if not (folder / "model.safetensors").is_file() and (absent := sorted(named - {file.name for file in weights})):
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"model {ref} is not whole: {absent[0]}{more}, named by {_INDEX}, not there; fetch what is missing"
        )
    if not weights and not any(folder.glob("*.bin")):
        raise InputError(f"model {ref} holds no weights: expected model.safetensors, or its shards and {_INDEX}")
    for file in weights:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"model {ref}: {file.name} {_damage(file)}") from error
    if not any((folder / name).is_file() for name in (*_TOKENIZERS, "tokenizer_config.json")):
        raise InputError(
            f"model {ref} comes without a tokenizer: put its tokenizer.json and tokenizer_config.json there"
        )


def explain(ref: str, error: Exception, device_type: str, folder: Path | None) -> InputError:
    """What to say of an exception that a loader raised.

    Args:
        folder: where the model's files lie; None where the first one could not be fetched.
    """
    said, text = first_line(error), str(error)
    here = f"transformers {transformers_version}"
    if (hub := _of_hub(ref, error, said)) is not None:
        return hub
    if folder is None:
        return InputError(
            f"model {ref} is not a local path and cannot be loaded from the hub: {said}; check the name and the network"
        )
    if "flash" in said.lower() or "attn_implementation" in said:
        return InputError(
            f"model {ref}: the attention asked for is not available here ({said}); leave it out, in config.json "
            f"attn_implementation and _attn_implementation"
        )
    if "trust_remote_code" in text or "custom code" in text:
        return InputError(
            f"model {ref} needs code from its own repository, which is never run: expected a model and a tokenizer "
            f"that {here} knows by itself"
        )
    if re.search(r"requires a GPU|only supported on GPU|GPU is required|No GPU", said):
        return InputError(f"model {ref} runs on a GPU only, this is {device_type} ({said}); give an unquantised copy")
    if isinstance(error, ImportError):
        return InputError(f"model {ref} needs a package that is not there: {said}; or give a copy that does without")
    if "does not recognize this architecture" in text:
        return InputError(f"model {ref} is of a kind ({_quoted(text)}) that {here} does not know: a newer one may")
    if "backend tokenizer" in text or "sentencepiece" in text or "tiktoken" in text:
        return InputError(
            f"model {ref} has tokenizer files that {here} cannot read: put a tokenizer.json there (tokenizer."
            f"save_pretrained writes it), or `pip install sentencepiece tiktoken`"
        )
    if isinstance(error, SafetensorError | json.JSONDecodeError) or "not a valid JSON" in said:
        try:
            check_files(folder, ref)
        except InputError as damaged:
            return damaged
    return _of_content(ref, error, said, here)


def _of_content(ref: str, error: Exception, said: str, here: str) -> InputError:
    """Causes inside files that can be read as such."""
    if isinstance(error, errors.StrictDataclassError):
        inner = [line.strip() for line in str(error).splitlines() if line.strip()]
        return InputError(f"model {ref}: config.json is refused by {here}: {inner[-1]}; correct that value")
    if isinstance(error, KeyError):
        return InputError(f"model {ref}: config.json names {said}, which {here} does not know: a newer one may")
    if isinstance(error, MemoryError) or "not enough memory" in said or "can't allocate memory" in said:
        return InputError(f"model {ref} does not fit this machine's memory: {said}; give a smaller one, or a GPU")
    if "weights_only" in str(error) or type(error).__name__ == "UnpicklingError":
        return InputError(f"model {ref} has .bin weights that cannot be read as such: give them as model.safetensors")
    if "model_type" in said:
        return InputError(f"model {ref}: config.json has no model_type, so it is no transformers model; add it there")
    return InputError(f"model {ref} cannot be loaded by {here}: {said}; its files are readable, look into config.json")


def _of_hub(ref: str, error: Exception, said: str) -> InputError | None:
    """Causes that lie with the hub, the network or the disk that files are fetched to."""
    causes = list(_chain(error))
    on_hub = f"https://huggingface.co/{ref}"
    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes):
        return InputError(
            f"model {ref} cannot be fetched: the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME "
            f"to a folder with room"
        )
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes) or "gated repo" in str(error):
        return InputError(f"model {ref} is gated: accept its terms at {on_hub}, then `hf auth login`")
    if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
        return InputError(f"model {ref} has no such --revision: its branches and tags are listed at {on_hub}/tree/main")
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return InputError(
            f"model {ref} is neither a local path nor on the hub: check the name and the network; a private one needs "
            f"`hf auth login`"
        )
    if constants.HF_HUB_OFFLINE and any(isinstance(cause, errors.LocalEntryNotFoundError) for cause in causes):
        return InputError(
            f"model {ref} is not a local path and not in the hub's cache ({constants.HF_HUB_CACHE}), and "
            f"HF_HUB_OFFLINE keeps it from being fetched: check the name and the network, and unset HF_HUB_OFFLINE"
        )
    if "does not appear to have a file named" in said:
        return InputError(
            f"model {ref} on the hub lacks a file: {said}; fetch a .gguf file and give its path, or another"
        )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _check_parsed(file: Path, ref: str) -> None:
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"model {ref}: {file.name} {_damage(file)} ({first_line(error)})") from error
    if not isinstance(parsed, dict):
        raise InputError(f"model {ref}: {file.name} holds no JSON object, fetch that file again")


def _named_by_index(index: Path) -> set[str]:
    placed = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    return {str(name) for name in placed.values()} if isinstance(placed, dict) else set()


def _damage(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            pointer = opened.read(40).startswith(b"version https://git-lfs")
    except OSError as error:
        return f"cannot be opened ({error.strerror}): check its permissions"
    if pointer:
        return "is a Git LFS pointer instead of the file: fetch the file with git lfs pull"
    return "is damaged or incomplete: fetch that file again"


def _quoted(text: str) -> str:
    found = re.search(r"model type `([^`]*)`", text)
    return found[1] if found else "unknown"
