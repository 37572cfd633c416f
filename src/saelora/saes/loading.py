"""One door to any trained SAE: a local folder, SAELens' registry, or a hub repository, in any known format."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelora.errors import InputError, on_one_line
from saelora.models.assets import resolve_asset
from saelora.models.hookpoints import Hookpoint, parse_hookpoint
from saelora.records import JsonObject
from saelora.saes import hub, registry
from saelora.saes.build import build_sae, check_finite, describe, fingerprint, freeze
from saelora.saes.formats import LAYOUTS, choose, folder_of, layer_file, single_file
from saelora.saes.processing import check_processing
from saelora.saes.readers import READERS
from saelora.saes.transcoder import Transcoder, TranscoderParts, build_transcoder, check_written

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MAX_DEPTH, _MAX_FILES = 5, 20_000


@dataclass(frozen=True)
class LoadedSAE:
    """A frozen SAE and what is known about it.

    Args:
        sae: an object with `encode`, `decode` and `forward`, in evaluation mode, no parameter requiring gradients. One
            with `reads` is a transcoder (`saes.transcoder`), and hookpoint is where it writes.
            At attn_z it takes merged heads, [..., n_heads * d_head]. One of a centred model (`saes.processing`) takes
            activations without their mean over d_model; a splice sees to that.
        hookpoint: where it was trained, or the caller's override.
        ref: what the caller wrote.
        format: saelens, gemma_scope, llama_scope, sparsify, dictionary_learning, circuit_tracer, a cross-layer
            transcoder's circuit_tracer_clt or gemma_scope_clt, or a conversion of SAELens' registry.
        model_name: the model it was trained on, as its files name it.
        revision: commit hash when it came from a hub.
        fingerprint: 16 hex digits over the weights, see `saelora.saes.build.fingerprint`.
        metadata: plain JSON data: k, context_size, prepend_bos, normalize_activations, ... as far as known. With
            normalize_activations layer_norm or constant_norm_rescale SAELens keeps state between encode and decode.
    """

    sae: nn.Module
    hookpoint: Hookpoint
    ref: str
    format: str
    architecture: str
    d_in: int
    d_sae: int
    model_name: str | None
    revision: str | None
    fingerprint: str
    metadata: JsonObject


@dataclass(frozen=True)
class _Opened:
    sae: Any
    format: str
    revision: str | None = None


def load_sae(
    ref: str,
    *,
    hookpoint: str | Hookpoint | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> LoadedSAE:
    """Load the SAE that `ref` names.

    Args:
        ref: the default SAE's name; else an existing local folder or file; else `release/sae_id` of SAELens's
            registry; else a hub repository `owner/name[/path/inside/repo]`.
        hookpoint: where the SAE sits, or a transcoder writes; overrides what its files say.
        device, dtype: of the weights.
        revision: branch, tag or commit of a hub repository.

    Raises:
        InputError: whatever is wrong with what was given, in one line with the remedy.
    """
    ref = str(ref)
    given = parse_hookpoint(hookpoint) if isinstance(hookpoint, str) else hookpoint
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    # weights are fingerprinted before they are narrowed, so one SAE has one fingerprint in every dtype
    wide = torch.promote_types(dtype, torch.float32)
    opened = _open(resolve_asset(ref), revision, wide)
    check_finite(opened.sae, ref)
    digest = fingerprint(opened.sae)
    metadata = describe(opened.sae)
    where = given or _hookpoint(metadata, ref, "hook_name_out" if isinstance(opened.sae, Transcoder) else "hook_name")
    if isinstance(opened.sae, Transcoder):
        check_written(where, ref)
        if opened.sae.reads is None:
            raise InputError(f"{ref} is a transcoder whose files do not say what it reads: put hf_hook_name into them")
    check_processing(metadata, where, ref)
    sae: Any = freeze(opened.sae, device, dtype)
    if dtype != wide:  # it may be too narrow
        check_finite(sae, ref)
    return LoadedSAE(
        sae=sae,
        hookpoint=where,
        ref=ref,
        format=opened.format,
        architecture=sae.cfg.architecture(),
        d_in=int(sae.cfg.d_in),
        d_sae=int(sae.cfg.d_sae),
        model_name=metadata.get("model_name"),
        revision=opened.revision,
        fingerprint=digest,
        metadata=metadata,
    )


def check_fits(loaded: LoadedSAE, width: int) -> None:
    """Raise InputError unless the SAE's d_in equals `width`, the width of the activation at its hookpoint."""
    if loaded.d_in != width:
        raise InputError(
            f"SAE expects d_in {loaded.d_in}, {loaded.hookpoint} has {width}: is this SAE for another model?"
        )


def _open(ref: str, revision: str | None, dtype: torch.dtype) -> _Opened:
    path = Path(ref).expanduser() if ref.startswith("~/") else Path(ref)
    if ref and path.exists():
        _no_revision(ref, revision, "a local path")
        return _open_local(path, dtype)
    entry = registry.find(ref)
    if entry is not None:
        _no_revision(ref, revision, f"a release of SAELens' registry (use {entry.repo}/{entry.path})")
        registry.refuse_cross_layer(entry, ref)
        if not entry.readable:
            return _Opened(registry.load(entry, ref, dtype), entry.format, hub.cached_commit(entry.repo))
        return _fetched(hub.fetch(f"{entry.repo}/{entry.path}"), dtype, entry)
    if not hub.is_hub_ref(ref):
        raise InputError(
            f"SAE {ref!r} is no existing path, no release/sae_id of SAELens' registry{_did_you_mean(ref)} and no hub "
            "repository owner/name[/path]"
        )
    try:
        fetched = hub.fetch(ref, revision)
    except InputError as error:
        raise InputError(f"{error}{_did_you_mean(ref)}") from error
    return _fetched(fetched, dtype, registry.registered(fetched.name))


def _fetched(fetched: hub.Fetched, dtype: torch.dtype, entry: registry.Entry | None) -> _Opened:
    sae = _read(fetched.folder, fetched.format, fetched.name, dtype, entry)
    return _Opened(sae, fetched.format, fetched.revision)


def _open_local(path: Path, dtype: torch.dtype) -> _Opened:
    # not resolved: files in the hub cache are links, and the names above them tell the hookpoint
    path = path.absolute()
    if path.is_file():
        layer = layer_file(path.name)
        if layer is not None and (layer.crosses or any((path.parent / name).is_file() for name in layer.beside)):
            return _Opened(_read(path.parent, layer.format, path.as_posix(), dtype, None), layer.format)
        if (single := single_file(path.name)) is not None:
            return _Opened(_read(path.parent, single.format, path.as_posix(), dtype, None), single.format)
        folder_name = folder_of(path.as_posix())
        if folder_name is None:
            known = ", ".join(sorted({name for layout in LAYOUTS for name in layout.required}))
            raise InputError(f"{path} is not a file of a known SAE format: expected one of {known}, or their folder")
        path = Path(folder_name)
    found = choose(_walk(path), str(path))
    folder = path / found.folder
    name = (path / found.place).as_posix()
    entry = registry.registered(name) if "/snapshots/" in name else None
    return _Opened(_read(folder, found.format, name, dtype, entry), found.format)


def _read(folder: Path, format: str, name: str, dtype: torch.dtype, entry: registry.Entry | None) -> nn.Module:
    try:
        parts = registry.completed(READERS[format](folder, name), entry)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        # a configuration of the right name with values of the wrong kind
        raise InputError(
            f"{folder} is not a usable {format} SAE ({type(error).__name__}: {on_one_line(error)})"
        ) from error
    if isinstance(parts, TranscoderParts):
        return build_transcoder(parts, name, dtype)
    return build_sae(parts, folder, name, dtype, None if entry is None else entry.scale)


def _walk(root: Path) -> list[str]:
    """Files below `root`, as relative posix paths, to a limited depth and number."""
    paths: list[str] = []
    for folder, folders, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        if len(relative.parts) >= _MAX_DEPTH:
            folders.clear()
        folders.sort()
        paths += [(relative / file).as_posix() for file in sorted(files)]
        if len(paths) > _MAX_FILES:
            raise InputError(f"{root} holds over {_MAX_FILES} files: give the folder of one SAE")
    return paths


def _hookpoint(metadata: JsonObject, ref: str, key: str) -> Hookpoint:
    name = metadata.get(key)
    if not name:
        raise InputError(f"{ref} does not say where its SAE sits: give hookpoint, such as layers.12.resid_post")
    try:
        return parse_hookpoint(str(name))
    except InputError as error:
        raise InputError(f"{ref}: {error}; or give hookpoint to override it") from error


def _no_revision(ref: str, revision: str | None, what: str) -> None:
    if revision is not None:
        raise InputError(f"revision {revision} was given for {ref}, {what}: only hub repositories have revisions")


def _did_you_mean(ref: str) -> str:
    near = registry.near_releases(ref)
    return f" (did you mean the SAELens release {' or '.join(near)}?)" if near else ""
