"""SAELens' registry of released SAEs, looked up without importing SAELens (which takes seconds)."""

import difflib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from saelora.errors import InputError
from saelora.saes.build import refuse_transcoder
from saelora.saes.hub import explain
from saelora.saes.readers.common import one_line

_FORMATS = {
    "sae_lens": "saelens",
    "gemma_2": "gemma_scope",
    "gemma_3": "gemma_scope",
    "llama_scope_r1_distill": "llama_scope",
    "dictionary_learning_1": "dictionary_learning",
}


@dataclass(frozen=True)
class Entry:
    """One SAE of the registry; `loader` is SAELens' name of the conversion, `path` the folder in the repository."""

    release: str
    sae_id: str
    repo: str
    path: str
    loader: str

    @property
    def format(self) -> str:
        return _FORMATS.get(self.loader, self.loader)


def find(ref: str) -> Entry | None:
    """The SAE that `release/sae_id` names; None when the first segment is no release.

    Raises:
        InputError: a release without a known sae_id after it; the message names near matches.
    """
    release, _, sae_id = ref.partition("/")
    data = _releases().get(release)
    if data is None:
        return None
    by_id = {str(sae["id"]): str(sae["path"]) for sae in data["saes"]}
    if sae_id not in by_id:
        got = f"no SAE {sae_id!r}" if sae_id else "several SAEs"
        near = difflib.get_close_matches(sae_id, by_id, n=3, cutoff=0.4) or list(by_id)[:3]
        raise InputError(
            f"release {release} has {got}: name one of its {len(by_id)}, such as "
            + ", ".join(f"{release}/{name}" for name in near)
        )
    return Entry(release, sae_id, data["repo_id"], by_id[sae_id], data.get("conversion_func") or "sae_lens")


def near_releases(text: str) -> list[str]:
    """Up to three releases whose name is close to the first segment of `text`."""
    return difflib.get_close_matches(text.partition("/")[0], _releases(), n=3, cutoff=0.75)


def load(entry: Entry, ref: str, dtype: torch.dtype) -> nn.Module:
    """Download and build through SAELens, on the CPU in `dtype`.

    SAELens folds the input scaling of `expected_average_only_in` with the factor in its registry; where the registry
    has none it warns, and `normalize_activations` stays in the metadata.

    Raises:
        InputError: a transcoder, no access, no network, or files that SAELens cannot read.
    """
    if "transcoder" in entry.loader + entry.path or "clt" in entry.path.split("/"):
        refuse_transcoder({"architecture": "transcoder"}, ref)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from sae_lens.saes import SAE

    try:
        sae: Any = SAE.from_pretrained(
            entry.release, entry.sae_id, device="cpu", dtype=str(dtype).removeprefix("torch.")
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise explain(error, entry.repo) from error
    except (
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        AssertionError,
        UnpicklingError,
        SafetensorError,
    ) as error:
        raise InputError(f"{ref}: SAELens cannot load this SAE ({one_line(error)})") from error
    except Exception as error:  # no network, in one of many forms that depend on the HTTP library below
        raise explain(error, entry.repo) from error
    refuse_transcoder(sae.cfg.to_dict(), ref)
    return sae


@cache
def _releases() -> dict[str, dict[str, Any]]:
    spec = find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("SAELens is not installed: pip install sae-lens")
    path = Path(spec.submodule_search_locations[0]) / "pretrained_saes.yaml"
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
