"""A finished run as a later command takes it up: its manifest, its options, its adapter."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from saelora.config import C, updated
from saelora.errors import InputError
from saelora.manifest import OF_TRAINED_SAES, read_json


def load_adapter(model: nn.Module, folder: str) -> nn.Module:
    """A PEFT adapter on a loaded model.

    Raises:
        InputError: there is none, it is damaged, or it is for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, folder).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"adapter {folder} does not load on this model: {reason}") from error


# what says how a model, an SAE or a text is read goes with it: one that is given is not read as the run's own was
_COMPANIONS = {"model": ("revision",), "sae": ("hookpoint",), "data": ("subset", "split", "text_column")}


def with_recorded(config: C, recorded: dict[str, Any], own: Collection[str]) -> C:
    """Options that were not given, ``own`` aside, are taken from the run with this manifest."""
    then, given = recorded["config"], config.given
    kept = {*own, *given, *(name for whole in given & _COMPANIONS.keys() for name in _COMPANIONS[whole])}
    values = {name: then[name] for name in vars(config) if name in then and name not in kept}
    if "model" not in kept and "revision" not in given:
        values["revision"] = recorded["model"]["revision"]  # the commit, where a branch may have moved on
    return updated(config, values, "the adapter's recorded configuration")


def recorded_run(path: Path) -> dict[str, Any]:
    """The manifest of an adapter's run.

    Raises:
        InputError: there is none, or it is of something else.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not {"config", "model", "saes"} <= found.keys():
        raise InputError(f"{path} is no manifest of an adapter: is {path.parent} the output folder of saelora adapt?")
    return found


def check_parts(parts: list[str], recorded: dict[str, Any], adapter: str) -> None:
    """Raise InputError where a part is asked of a run that trained its SAE and has nothing to say of it."""
    others = [part for part in parts if part not in OF_TRAINED_SAES]
    if others and recorded.get("tuned_saes"):
        raise InputError(
            f"--parts {others[0]} is about an adapter around a frozen SAE, {adapter} trained its SAE (method "
            f"{recorded['method']}): expected --parts {' '.join(OF_TRAINED_SAES)}, or some of them"
        )


def check_unchanged(now: dict[str, Any], recorded: dict[str, Any], *, model: bool, saes: bool) -> None:
    """Raise InputError where the model or an SAE is not the one that the run with this manifest was made on.

    Args:
        now: of the same form as the manifest, from ``saelora.manifest.describe``.
        model, saes: whether they are to be the run's own.
    """
    pairs = [(now["model"], recorded["model"], "model", "as MODEL")] if model else []
    if saes:
        pairs += [(*pair, "SAE", "with --sae") for pair in zip(now["saes"], recorded["saes"], strict=True)]
    for found, then, kind, how in pairs:
        if found["fingerprint"] != then["fingerprint"]:
            raise InputError(
                f"{kind} {found['ref']} has changed since the adapter was made (fingerprint {then['fingerprint']}, now "
                f"{found['fingerprint']}): name one {how} to evaluate the adapter with it all the same"
            )
