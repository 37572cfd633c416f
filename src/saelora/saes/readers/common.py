"""What every reader shares: opening files with plain errors, and the parts that an SAE is built from."""

import json
import math
import pickle
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject
from saelora.saes.saelens import saelens_version


@dataclass
class Parts:
    """A trained SAE in SAELens' terms, before it is built.

    Args:
        cfg: SAELens configuration: architecture, d_in, d_sae, apply_b_dec_to_input, ..., metadata.
        weights: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in], and what the architecture adds.
    """

    cfg: JsonObject
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Spec:
    """What a reader learnt from a foreign format; `parts` turns it into SAELens' terms."""

    architecture: str
    weights: dict[str, Tensor]
    apply_b_dec_to_input: bool
    hook_name: str | None
    model_name: str | None
    extra: JsonObject = field(default_factory=dict)
    metadata: JsonObject = field(default_factory=dict)

    def parts(self, source: Path) -> Parts:
        """Shapes come from the weights alone, so a configuration that disagrees with them cannot mislead."""
        w_enc = self.weights["W_enc"]
        if w_enc.ndim != 2:
            raise InputError(f"{source}: the encoder has shape {tuple(w_enc.shape)}, expected 2 dimensions")
        d_in, d_sae = w_enc.shape
        metadata = {"sae_lens_version": saelens_version(), "hook_name": self.hook_name, "model_name": self.model_name}
        cfg = {
            "architecture": self.architecture,
            "d_in": d_in,
            "d_sae": d_sae,
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "reshape_activations": "none",
            **self.extra,
            "metadata": {k: v for k, v in {**metadata, **self.metadata}.items() if v is not None},
        }
        # SAELens would otherwise claim that it trained this SAE itself
        cfg["metadata"]["sae_lens_training_version"] = None
        _check_shapes(self.weights, source)
        if "k" in cfg and not 0 < cfg["k"] <= d_sae:
            raise InputError(f"{source}: k is {cfg['k']}, expected 1 to d_sae {d_sae}")
        return Parts(cfg, self.weights)


def _check_shapes(weights: dict[str, Tensor], source: Path) -> None:
    """Raise InputError where a weight's shape does not follow from the encoder's, or its values are no floats."""
    d_in, d_sae = weights["W_enc"].shape
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, tensor in weights.items():
        expected = shapes.get(name, (d_sae,))
        if tuple(tensor.shape) != expected or not tensor.is_floating_point():
            raise InputError(
                f"{source}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected floats of {expected} "
                f"beside an encoder of d_in {d_in}, d_sae {d_sae}"
            )


# of an option: it is not used
_OFF = (None, False, "", "none", "None")


def account_for_keys(cfg: JsonObject, known: Collection[str], path: Path, what: str = "") -> None:
    """Raise InputError where a configuration sets a key that is not known: it may change what the SAE computes.

    Args:
        known: keys that the reader reads, and those that change nothing.
        what: which part of the file this is.
    """
    for key, value in cfg.items():
        off = value in _OFF or value == 0 if not isinstance(value, list | dict) else not value
        if key not in known and not off:
            raise InputError(
                f"{path} sets {what}{key} to {on_one_line(repr(value), 80)}, which this reader does not know "
                f"and which may change what the SAE computes: take the entry out of the file if it does not"
            )


def account_for_tensors(state: Iterable[str], used: Iterable[str], path: Path) -> None:
    """Raise InputError where a file holds tensors that nothing reads."""
    if extra := sorted(set(state) - set(used)):
        raise InputError(
            f"{path} has {', '.join(extra[:5])}, which this reader does not know and would leave out: expected "
            f"{', '.join(sorted(used))} and nothing else"
        )


def check_floats(state: dict[str, Tensor], path: Path) -> None:
    """Raise InputError where a tensor holds something else than floats, which a conversion would hide."""
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            raise InputError(f"{path}: {key} holds {tensor.dtype}, expected floats")


def check_sizes(cfg: JsonObject, names: dict[str, int], path: Path) -> None:
    """Raise InputError where sizes that a configuration gives are not those of the weights."""
    for key, size in names.items():
        if cfg.get(key) not in (None, 0, size):
            raise InputError(f"{path} says {key} {cfg[key]}, its weights have {size}: the two are not of one SAE")


def number(value: Any, name: str, path: Path, *, least: float = -math.inf) -> float:
    """A finite number, or an InputError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of {least:g} or more"
        raise InputError(f"{path} has {name} {value!r}, expected a number{bound}")
    return value


def whole(value: Any, name: str, path: Path) -> int:
    """A whole number of 1 or more, or an InputError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path} has {name} {value!r}, expected a whole number of 1 or more")
    return value


def flag(value: Any, name: str, path: Path) -> bool:
    """True or false, or an InputError that names it."""
    if not isinstance(value, bool):
        raise InputError(f"{path} has {name} {value!r}, expected true or false")
    return value


def text(value: Any, name: str, path: Path) -> str:
    """Text, or an InputError that names it."""
    if not isinstance(value, str):
        raise InputError(f"{path} has {name} {value!r}, expected text")
    return value


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file.

    Raises:
        InputError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({on_one_line(error)}): download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, expected an object with the SAE's configuration")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Raises:
        InputError: truncated, corrupt or not safetensors.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _corrupt(path, "safetensors", error) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """Every array of an npz file; arrays of Python objects are refused.

    Raises:
        InputError: truncated, corrupt, not npz, or holding pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.lib.npyio.NpzFile):
                return {key: torch.from_numpy(np.ascontiguousarray(file[key])) for key in file.files}
    except Exception as error:  # numpy reads headers with Python's tokenizer and parser: any of their errors, and zip's
        raise _corrupt(path, "npz", error) from error
    raise InputError(f"{path} holds one bare array, expected an npz archive of named arrays")


def read_torch(path: Path) -> JsonObject:
    """The dictionary in a torch file, tensors and plain containers only: no code in the file is run.

    Raises:
        InputError: truncated, corrupt, holding pickled Python objects, or not a dictionary.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is corrupt or holds pickled Python objects besides tensors, and reading those "
            "would run code from the file; save it again as a plain state dict"
        ) from error
    except Exception as error:  # a damaged archive can end in any
        raise _corrupt(path, "a torch state dict", error) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, expected a state dict of tensors")
    return value


def take(mapping: JsonObject, key: str, path: Path) -> Any:
    """`mapping[key]`, or an InputError that names the file, the key and what is there."""
    if key not in mapping:
        raise InputError(
            f"{path} has no {key!r}: expected it beside {', '.join(sorted(map(str, mapping))) or 'nothing'}"
        )
    return mapping[key]


def _corrupt(path: Path, kind: str, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read as {kind} ({on_one_line(error)}): it is truncated or corrupt, get it again"
    )
