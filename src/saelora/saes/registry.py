"""SAELens' registry of released SAEs: what a reference names, and what is known of it beside its files."""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject
from saelora.saes.build import refuse_transcoder
from saelora.saes.hub import explain
from saelora.saes.readers import READERS
from saelora.saes.readers.common import Parts, account_for_tensors, read_safetensors, read_torch
from saelora.saes.readers.single_file import LINEAR
from saelora.saes.saelens import need_saelens, releases
from saelora.saes.transcoder import TranscoderParts

_FORMATS = {
    "sae_lens": "saelens",
    "gemma_2": "gemma_scope",
    "gemma_3": "gemma_scope",
    "gemma_2_transcoder": "gemma_scope",
    "mwhanna_transcoder": "circuit_tracer",
    "llama_scope_r1_distill": "llama_scope",
    "dictionary_learning_1": "dictionary_learning",
    "deepseek_r1": "goodfire",
}
# loaders of SAELens whose files no reader here knows -> where its weights are, and the tensors that SAELens takes
_FOREIGN = {
    "llama_scope_r1_distill": ("{path}/sae_weights.safetensors", (*LINEAR, "log_jumprelu_threshold")),
}
# a file of a hub repository in the cache
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/(.+)$")


@dataclass(frozen=True)
class Entry:
    """One SAE of the registry.

    loader: SAELens' name of the conversion.  path: the folder in the repository.  overrides: what the registry knows
    better than the files.  scale: the factor on activations of `expected_average_only_in`, where it is known.
    """

    release: str
    sae_id: str
    repo: str
    path: str
    loader: str
    overrides: JsonObject = field(default_factory=dict)
    scale: float | None = None

    @property
    def readable(self) -> bool:
        """Whether a reader here knows its files; others go through SAELens."""
        return self.loader != "llama_scope_r1_distill" and self.format in READERS

    @property
    def format(self) -> str:
        return _FORMATS.get(self.loader, self.loader)


def find(ref: str) -> Entry | None:
    """The SAE that `release/sae_id` names; None when the first segment is no release.

    Raises:
        InputError: a release without a known sae_id after it; the message names near matches.
    """
    release, _, sae_id = ref.partition("/")
    data = releases().get(release)
    if data is None:
        return None
    by_id = {str(sae["id"]): sae for sae in data["saes"]}
    if sae_id not in by_id:
        got = f"no SAE {sae_id!r}" if sae_id else "several SAEs"
        near = difflib.get_close_matches(sae_id, by_id, n=3, cutoff=0.4) or list(by_id)[:3]
        raise InputError(
            f"release {release} has {got}: name one of its {len(by_id)}, such as "
            + ", ".join(f"{release}/{name}" for name in near)
        )
    return _entry(release, data, by_id[sae_id])


def _entry(release: str, data: JsonObject, sae: JsonObject) -> Entry:
    loader, overrides = data.get("conversion_func") or "sae_lens", data.get("config_overrides") or {}
    where = str(sae["id"]), data["repo_id"], str(sae["path"])
    return Entry(release, *where, loader, overrides, sae.get("norm_scaling_factor"))


def registered(name: str) -> Entry | None:
    """The SAE that a hub reference owner/repository/path or a folder of the hub cache names, if it is in the registry.

    Of several releases of one SAE it is the one that knows more than its files.
    """
    if match := _CACHED.search(name):
        name = "/".join(match.groups())
    owner, _, rest = name.partition("/")
    repo, _, path = rest.partition("/")
    found = [
        _entry(release, data, sae)
        for release, data in releases().items()
        if data["repo_id"] == f"{owner}/{repo}"
        for sae in data["saes"]
        if str(sae["path"]) == path
    ]
    return max(found, key=lambda entry: (bool(entry.overrides), entry.scale is not None), default=None)


def completed(parts: Parts | TranscoderParts, entry: Entry | None) -> Parts | TranscoderParts:
    """The parts of an SAE with what the registry knows better, as SAELens' own loader puts it in.

    A file of SAELens 6 has the SAE's origin in its metadata, where SAELens 6 looks for it, and no override reaches it.
    """
    if entry is None or isinstance(parts, TranscoderParts):
        return parts
    cfg = dict(parts.cfg)
    metadata = dict(cfg.get("metadata") or {})
    for key, value in entry.overrides.items():
        (cfg if key == "normalize_activations" or not metadata else metadata)[key] = value
    return Parts({**cfg, "metadata": metadata} if metadata else cfg, parts.weights)


def ids_of(release: str) -> list[str] | None:
    """The sae_id of every entry of a release; None where there is no such release."""
    data = releases().get(release)
    return None if data is None else [str(sae["id"]) for sae in data["saes"]]


def near_releases(text: str) -> list[str]:
    """Up to three releases whose name is close to the first segment of `text`."""
    return difflib.get_close_matches(text.partition("/")[0], releases(), n=3, cutoff=0.75)


def refuse_cross_layer(entry: Entry, ref: str) -> None:
    """Raise InputError where the registry has one layer of a cross-layer transcoder, for activations alone."""
    if "clt" in entry.loader.split("_") or "clt" in entry.path.split("/"):
        raise InputError(
            f"{ref} is one layer of a cross-layer transcoder, with the sum of its decoders in place of each: put the "
            f"whole in with --transcoders {entry.repo}"
        )


def load(entry: Entry, ref: str, dtype: torch.dtype) -> nn.Module:
    """Download and build through SAELens, on the CPU in `dtype`: for files that no reader here knows.

    SAELens folds the input scaling of `expected_average_only_in` with the factor in its registry; where the registry
    has none it warns, and `normalize_activations` stays in the metadata.

    Raises:
        InputError: no SAE, no access, no network, files that SAELens cannot read, or tensors that it would leave out.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    need_saelens(f"{ref} is in a format that SAELens alone reads ({entry.loader}): it")
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
        raise InputError(f"{ref}: SAELens cannot load this SAE ({on_one_line(error)})") from error
    except Exception as error:  # no network, in one of many forms that depend on the HTTP library below
        raise explain(error, entry.repo) from error
    refuse_transcoder(sae.cfg.to_dict(), ref)
    if sae.cfg.architecture() == "temporal":
        raise InputError(
            f"{ref} is a temporal SAE: its latents depend on other positions, and a splice hands it each by itself"
        )
    _account(entry, ref)
    loaded: nn.Module = sae
    return loaded


def _account(entry: Entry, ref: str) -> None:
    """Raise InputError where the weights hold tensors that SAELens left out without a word."""
    from huggingface_hub import hf_hub_download

    if entry.loader not in _FOREIGN:
        return  # SAELens hands on all that there is, and the SAE takes no more than its own
    file, tensors = _FOREIGN[entry.loader]
    path = Path(hf_hub_download(entry.repo, file.format(path=entry.path), local_files_only=True))
    held = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    account_for_tensors(map(str, held), tensors, Path(ref))
