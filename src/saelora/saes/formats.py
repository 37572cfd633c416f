"""Which files make up a trained SAE, and finding them in a list of paths (a local folder or a hub repository)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from saelora.errors import InputError


@dataclass(frozen=True)
class Layout:
    """The files of one format, relative to the SAE's folder; the first one holds the weights."""

    format: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.format} ({' + '.join(reversed(self.required))})"


LAYOUTS = (
    Layout(
        "saelens",
        ("sae_weights.safetensors", "cfg.json"),
        ("activation_scaler.json", "activation_whitening.safetensors"),
    ),
    Layout("sparsify", ("sae.safetensors", "cfg.json"), ("../config.json", "../../config.json")),
    Layout("gemma_scope", ("params.npz",)),
    Layout("gemma_scope", ("params.safetensors",), ("config.json",)),
    Layout("llama_scope", ("checkpoints/final.safetensors", "hyperparams.json")),
    Layout("dictionary_learning", ("ae.pt", "config.json")),
)
# files that are an SAE by themselves, by their name -> format
_SINGLE = {
    "qwen_scope": re.compile(r"^layer(?P<layer>\d+)\.sae\.pt$"),
    "goodfire": re.compile(r"^.+-SAE-l(?P<layer>\d+)\.pth?$"),
}


@dataclass(frozen=True)
class SingleFile:
    """What the name of a file says that is an SAE by itself."""

    format: str
    layer: int


def single_file(name: str) -> SingleFile | None:
    """What a file's name says, without folders; None where it is no SAE by itself."""
    for format, pattern in _SINGLE.items():
        if match := pattern.match(name):
            return SingleFile(format, int(match["layer"]))
    return None


@dataclass(frozen=True)
class LayerFile:
    """What the name of a file says that holds one layer of a set of transcoders.

    Args:
        beside: files of its folder that it is read with, where they are there.
        crosses: it is a layer of a cross-layer transcoder.
    """

    format: str
    layer: int
    beside: tuple[str, ...]
    crosses: bool = False


# of circuit-tracer and mwhanna's repositories; circuit-tracer's cross-layer ones; Gemma Scope 2's
SET_CONFIGS = ("config.yaml", "wandb-config.yaml", "wanb-config.yaml")
_LAYER_FILES = (
    (re.compile(r"^layer_(\d+)\.safetensors$"), "circuit_tracer", SET_CONFIGS, False),
    (re.compile(r"^W_enc_(\d+)\.safetensors$"), "circuit_tracer_clt", ("config.yaml", "W_dec_{}.safetensors"), True),
    (re.compile(r"^params_layer_(\d+)\.safetensors$"), "gemma_scope_clt", ("config.json",), True),
)


def layer_file(name: str) -> LayerFile | None:
    """What a file's name says, without folders; None where it holds no layer of a set."""
    for pattern, format, beside, crosses in _LAYER_FILES:
        if match := pattern.match(name):
            return LayerFile(format, int(match[1]), tuple(each.format(match[1]) for each in beside), crosses)
    return None


@dataclass(frozen=True)
class Found:
    """One SAE among the paths that were searched; `folder` is relative to their root, "." for the root itself."""

    format: str
    folder: str
    files: tuple[str, ...]

    @property
    def place(self) -> str:
        """What names it: its file where that is an SAE by itself, else its folder."""
        return self.files[0] if self.format in _SINGLE else self.folder


def find_saes(paths: Iterable[str]) -> list[Found]:
    """Every complete SAE among `paths` (forward slashes, relative to one root), in natural order of folders."""
    present = {str(PurePosixPath(path)) for path in paths}
    found: dict[str, Found] = {}
    for layout in LAYOUTS:
        weights = layout.required[0]
        for path in present:
            if path != weights and not path.endswith("/" + weights):
                continue
            folder = str(PurePosixPath(path[: -len(weights)] or "."))
            if all(_join(folder, name) in present for name in layout.required):
                names = [_join(folder, name) for name in layout.required + layout.optional]
                files = tuple(name for name in names if name in present)
                found.setdefault(folder, Found(layout.format, folder, files))
    return sorted(found.values(), key=lambda one: _natural(one.folder))


def _single_files(paths: Iterable[str]) -> list[Found]:
    """Every file among `paths` that is an SAE by itself."""
    named = [(PurePosixPath(path), single_file(PurePosixPath(path).name)) for path in paths]
    return [Found(known.format, str(path.parent), (str(path),)) for path, known in named if known is not None]


def folder_of(path: str) -> str | None:
    """The folder of the SAE that the file `path` is part of, None when no known format has a file of that name."""
    names = {name for layout in LAYOUTS for name in layout.required}
    name = next((name for name in sorted(names) if f"/{path}".endswith(f"/{name}")), None)
    return None if name is None else str(PurePosixPath(path[: -len(name)] or "."))


def choose(paths: Iterable[str], ref: str) -> Found:
    """The one SAE that `ref` means: the one at its root, else the only one below it.

    Raises:
        InputError: no known format, or several SAEs; the message says what was seen and what can be named.
    """
    paths = sorted(paths, key=_natural)
    found = find_saes(paths)
    if not found and (singles := _single_files(paths)):
        if len(singles) == 1:
            return singles[0]
        raise InputError(
            f"{ref} holds {len(singles)} SAEs, one a layer: name one, such as {ref.rstrip('/')}/{singles[0].place}"
        )
    layers = {path: file for path in paths if (file := layer_file(PurePosixPath(path).name)) is not None}
    if not found and layers:
        if any(file.crosses for file in layers.values()):
            raise InputError(f"{ref} holds a cross-layer transcoder, which is put in whole: give it with --transcoders")
        first = f"{ref.rstrip('/')}/{next(iter(layers))}"
        raise InputError(
            f"{ref} holds {len(layers)} transcoders, one a layer: name one, such as {first}, or all of them with "
            "--transcoders"
        )
    if not found:
        known = ", ".join(str(layout) for layout in LAYOUTS)
        raise InputError(f"{ref} holds no SAE in a known format: saw {_some(paths)}; expected one of {known}")
    at_root = [one for one in found if one.folder == "."]
    if at_root or len(found) == 1:
        return (at_root or found)[0]
    folders = [one.folder for one in found]
    raise InputError(
        f"{ref} holds {len(found)} SAEs: name one, such as {ref.rstrip('/')}/{folders[0]} (choices: {_some(folders)})"
    )


def _join(folder: str, name: str) -> str:
    """`folder/name` with any ".." of the name resolved; escapes from the root give a path that is never present."""
    parts = [] if folder == "." else folder.split("/")
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return "../" + name
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts layers.2 before layers.10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _some(names: list[str], limit: int = 6) -> str:
    if not names:
        return "no files"
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
