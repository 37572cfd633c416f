"""A PEFT adapter's files -> a loaded model, with proof that every tensor of the file is where it belongs.

PEFT warns, or says nothing, where a file's tensors find no place in the model, or the model's places no tensor: the
figures of such a model are those of half an adapter, or of none.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora.errors import InputError, on_one_line
from saelora.records import JsonObject

if TYPE_CHECKING:  # evaluate looks whether there is an adapter before it imports torch
    from torch import Tensor, nn

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# initialisations that change the base's weights when the adapter is attached: switched off, it leaves another model
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """The model with a LoRA adapter that PEFT saved, in evaluation mode; checked tensor by tensor.

    Args:
        model: loaded, without an adapter.
        folder: holds adapter_config.json and adapter_model.safetensors.

    Raises:
        InputError: there is none, it is damaged, it is of a kind that leaves another model when it is switched off, or
            it is for another model: a tensor of the file has no place in the model, or a place no tensor.
    """
    from peft import PeftModel

    folder = Path(folder)
    if hasattr(model, "peft_config"):
        raise InputError(f"the model has an adapter already: load {folder} on the bare model")
    _check_config(folder)
    stored = _stored(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys: all of them are looked at below
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # PEFT raises whatever a configuration that is none makes it do
        reason = f"{type(error).__name__}: {on_one_line(error)}"
        raise InputError(f"adapter {folder} does not load on this model: {reason}") from error
    check_landed(adapted, stored, str(folder))
    return adapted


def check_landed(adapted: Any, stored: Mapping[str, Tensor], what: str) -> None:
    """Raise InputError unless the model's adapter holds these tensors and no others, each with its values.

    Args:
        adapted: a PeftModel with one adapter.
        stored: an adapter file's tensors by name, in any floating dtype: what the model narrows is narrowed alike.
        what: names the adapter in the message.
    """
    import torch

    there, given = _there(adapted), {key.removeprefix(_PREFIX): tensor for key, tensor in stored.items()}
    if there.keys() != given.keys():
        given = _named(adapted, stored)
    unused, empty = sorted(given.keys() - there.keys()), sorted(there.keys() - given.keys())
    if unused:
        raise InputError(
            f"adapter {what} does not load on this model: {len(unused)} of its {len(given)} tensors have no place in it"
            f" (first: {unused[0]}); was it made for another model, or {ADAPTER_CONFIG} changed?"
        )
    if empty:
        raise InputError(
            f"adapter {what} does not load on this model: its file lacks {len(empty)} of the {len(there)} tensors that "
            f"{ADAPTER_CONFIG} asks for (first: {empty[0]}); is the file whole, and made for this model?"
        )
    for name, tensor in given.items():
        found = there[name]
        if found.is_meta:
            raise InputError(f"adapter {what} did not land on this model: {name} is offloaded; load the model whole")
        if found.shape != tensor.shape or not torch.equal(found.detach().cpu(), tensor.to(found.dtype)):
            raise InputError(f"adapter {what} did not land on this model: {name} is not what its file holds")


def adapter_fingerprint(folder: Path) -> str | None:
    """16 hex digits over an adapter's tensors and what scales them; None where there is no adapter.

    Raises:
        InputError: a file is damaged.
    """
    if not (folder / ADAPTER_CONFIG).exists():
        return None
    import torch

    config, digest = _config(folder), hashlib.sha256()
    digest.update(json.dumps([config.get(key) for key in _SCALES], sort_keys=True).encode())
    for name, tensor in sorted(_stored(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


_SCALES = (  # what says how the tensors act
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
)


def _check_config(folder: Path) -> None:
    """Refuse what is no LoRA adapter in PEFT's format, and what changes the base model too."""
    config = _config(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"adapter {folder} is of PEFT's type {kind}, expected LORA: no other type is supported")
    start = config.get("init_lora_weights")
    reason = None
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        reason = f"its initialisation {start} changes the base's weights (PEFT can convert it when it saves)"
    elif config.get("bias", "none") != "none":
        reason = f"with bias {config['bias']!r} it holds biases of the base, which stay when it is switched off"
    elif config.get("layer_replication"):
        reason = "layer_replication makes another base model"
    if reason:
        raise InputError(f"adapter {folder} is refused, since the original could not be measured beside it: {reason}")


def _config(folder: Path) -> JsonObject:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: is {folder} the folder of an adapter that PEFT saved?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {on_one_line(error)}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds {type(config).__name__}, expected an object: is it a file of PEFT's?")
    return config


def _stored(folder: Path) -> dict[str, Tensor]:
    """The file's tensors, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    if not path.exists():
        pickled = (folder / "adapter_model.bin").exists()
        why = "; a pickled adapter_model.bin is not read: save it as safetensors" if pickled else ": is it whole?"
        raise InputError(f"adapter {folder} has no {ADAPTER_WEIGHTS}{why}")
    try:
        found = load_file(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"adapter {folder} cannot be read: {on_one_line(error)}") from error
    # a finite sum, one pass, has no other numbers in it; one that is not may have run over
    bad = next((name for name, t in found.items() if not t.sum().isfinite() and not t.isfinite().all()), None)
    if bad:
        raise InputError(f"adapter {folder} holds values that are no numbers, in {bad}: its training diverged")
    return found


def _there(adapted: Any) -> dict[str, Tensor]:
    """The adapter's tensors in the model, under the names that PEFT saves them by."""
    from peft import get_peft_model_state_dict

    (name,) = adapted.peft_config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    return {key.removeprefix(_PREFIX): tensor for key, tensor in found.items()}


def _named(adapted: Any, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under the names that this version's model has, where transformers has renamed its modules."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    except ImportError:  # before transformers 5, or PEFT's support of it: names are as they were
        converted: Mapping[str, Tensor] = stored
    else:
        (name,) = adapted.peft_config
        converted = convert_peft_adapter_state_dict_for_transformers(
            model=adapted, peft_config=adapted.peft_config[name], adapter_state_dict=dict(stored), adapter_name=name
        )
    return {key.removeprefix(_PREFIX): tensor for key, tensor in converted.items()}
