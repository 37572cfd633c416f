"""Transcoders of many layers by one name: which folders, files or entries they are, and those that are asked for."""

import re
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from saelora.errors import InputError
from saelora.models.assets import resolve_asset
from saelora.saes import hub, registry
from saelora.saes.formats import LayerFile, find_saes, layer_file

_LAYER = re.compile(r"(?:^|[/_.-])(?:layers?|blocks|h)[._](\d+)(?=[/_.-]|$)")
_MAX_DEPTH = 5


def chosen_layers(text: str, n_layers: int) -> list[int]:
    """The layers of "all", "every:3" (0, 3, 6, ...) or "0,4,8-12".

    Raises:
        InputError: a layer that the model does not have.
    """
    if text == "all":
        return list(range(n_layers))
    if text.startswith("every:"):
        return list(range(0, n_layers, int(text.removeprefix("every:"))))
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    if outside := sorted(i for i in found if i >= n_layers):
        raise InputError(f"transcoder_layers names layer {outside[0]}: this model has layers 0 to {n_layers - 1}")
    return sorted(found)


def transcoders_of(ref: str, layers: str, n_layers: int) -> list[str]:
    """What ``load_sae`` is to be given for each of the layers, in their order.

    Args:
        ref: a local folder, a release of SAELens's registry, or a hub repository or a folder in it, that holds one
            transcoder a layer; with * in it, those below whose names match.
        layers: as ``chosen_layers`` reads it.
        n_layers: of the model.

    Raises:
        InputError: there are none, several of one layer, or none of a layer that is asked for.
    """
    by_layer: dict[int, list[str]] = defaultdict(list)
    for name in _members(ref):
        if (layer := _layer_of(name)) is not None:
            by_layer[layer].append(name)
    if not by_layer:
        raise InputError(
            f"{ref} holds no transcoders whose names tell their layers (layer_N.safetensors, layers.N.mlp, layer_N/): "
            "name each with --sae"
        )
    wanted, last = chosen_layers(layers, n_layers), max(by_layer)
    crossing = any(file.crosses for names in by_layer.values() for name in names if (file := _file(name)) is not None)
    here = f"this model has layers 0 to {n_layers - 1}"
    if last >= n_layers:
        raise InputError(f"{ref} has a transcoder of layer {last}, {here}: is it for another model?")
    missing = [layer for layer in wanted if layer not in by_layer]
    if crossing and wanted != list(range(n_layers)):
        raise InputError(
            f"{ref} is a cross-layer transcoder, whose latents write into every later layer: it is put in whole, leave "
            "--transcoder-layers out"
        )
    if crossing and missing:
        raise InputError(
            f"{ref} is a cross-layer transcoder that has no layer {missing[0]}, but {_ranges(by_layer)}; {here}: it is "
            "for another model, or a file is missing"
        )
    if missing:
        raise InputError(
            f"{ref} has no transcoder of layer {missing[0]}, but of layers {_ranges(by_layer)}; {here}: choose with "
            "--transcoder-layers, if they are for this model"
        )
    for layer in wanted:
        if len(by_layer[layer]) > 1:
            raise InputError(
                f"{ref} has {len(by_layer[layer])} transcoders of layer {layer}, such as {by_layer[layer][0]} and "
                f"{by_layer[layer][1]}: say which by a name with * for the layer"
            )
    return [by_layer[layer][0] for layer in wanted]


def _members(ref: str) -> list[str]:
    """Names of all SAEs and transcoders below a reference, as ``load_sae`` takes them."""
    base, pattern = _divided(ref)
    path = Path(resolve_asset(base)).expanduser()
    if path.is_dir():
        names = [f"{base.rstrip('/')}/{name}" for name in _inside(_files(path))]
    elif (ids := registry.ids_of(base.partition("/")[0])) is not None:
        release, _, inside = base.partition("/")
        names = [f"{release}/{name}" for name in ids if not inside or name.startswith(inside)]
    elif hub.is_hub_ref(base):
        owner, name, *rest = base.strip("/").split("/", 2)
        below = f"{rest[0]}/" if rest else ""
        paths = [path.removeprefix(below) for path in hub.paths_of(f"{owner}/{name}") if path.startswith(below)]
        names = [f"{base.strip('/')}/{found}" for found in _inside(paths)]
    else:
        raise InputError(
            f"transcoders {ref!r} are no existing folder, no release of SAELens's registry and no hub repository "
            "owner/name[/path]"
        )
    return [name for name in names if pattern is None or fnmatchcase(name, f"{base.rstrip('/')}/{pattern}")]


def _divided(ref: str) -> tuple[str, str | None]:
    """What stands before the first part of a name with * in it, and that part with what follows."""
    parts = ref.split("/")
    at = next((i for i, part in enumerate(parts) if "*" in part), None)
    return (ref, None) if at is None else ("/".join(parts[:at]) or ".", "/".join(parts[at:]))


def _inside(paths: Iterable[str]) -> list[str]:
    """Of a folder's files: those of sets, one a layer, and the folders of SAEs."""
    paths = sorted(paths)
    files = [path for path in paths if layer_file(PurePosixPath(path).name) is not None]
    return [*files, *(found.folder for found in find_saes(paths) if found.folder != ".")]


def _files(root: Path) -> list[str]:
    return [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if len(path.relative_to(root).parts) <= _MAX_DEPTH and path.is_file()
    ]


def _layer_of(name: str) -> int | None:
    file, found = _file(name), _LAYER.findall(name)
    return file.layer if file is not None else int(found[-1]) if found else None


def _file(name: str) -> LayerFile | None:
    return layer_file(PurePosixPath(name).name)


def _ranges(layers: Iterable[int]) -> str:
    """Layers in words, as 0-5, 8."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
