"""A finished run as a later command takes it up: its manifest, its options, whether its weights are the same."""

from __future__ import annotations

from collections.abc import Collection, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora import shapes
from saelora.config import C, updated
from saelora.console import Console
from saelora.errors import InputError
from saelora.evals.registry import of_trained_saes
from saelora.identity import model_name, sae_names, same_model, same_saes
from saelora.manifest import MANIFEST, describe, read_json
from saelora.models.adapters import ADAPTER_CONFIG, adapter_fingerprint
from saelora.shapes import check_file

if TYPE_CHECKING:
    from saelora.assemble import Assembled
    from saelora.jobs.evaluate import EvaluateConfig

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


def recorded_run(folder: Path) -> dict[str, Any] | None:
    """The manifest of an adapter's run; None of an adapter that PEFT alone saved, which has none.

    Raises:
        InputError: there is neither, or the manifest is of something else.
    """
    path = folder / MANIFEST
    if not path.exists() and (folder / ADAPTER_CONFIG).exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not {"config", "model", "saes"} <= found.keys():
        raise InputError(f"{path} is no manifest of an adapter: is {folder} the output folder of saelora adapt?")
    check_file(found, shapes.MANIFEST, path, "bring it back as its run left it, or run adapt anew")
    found["model"].setdefault("revision", None)
    return {"method": "lora", **found}


def check_parts(parts: list[str], recorded: dict[str, Any], adapter: str) -> None:
    """Raise InputError where a part is asked of a run that trained its SAE and has nothing to say of it."""
    others = [part for part in parts if part not in of_trained_saes()]
    if others and recorded.get("tuned_saes"):
        raise InputError(
            f"--parts {others[0]} is about an adapter around a frozen SAE, {adapter} trained its SAE (method "
            f"{recorded['method']}): expected --parts {' '.join(of_trained_saes())}, or some of them"
        )


def check_made_for(
    now: dict[str, Any], recorded: dict[str, Any], given: Set[str], adapter: str, forced: bool
) -> dict[str, list[str]]:
    """Refuse a model, SAE or adapter whose weights are not those that the run with this manifest was made with.

    Args:
        now: of the same form as the manifest, from ``saelora.manifest.describe``.
        given: options that were given: a model or an SAE of the run's own has changed, another was named.
        forced: go on all the same.

    Returns:
        What is to stand beside the results: "other_weights", what differs and was forced; "unchecked", what could not
        be compared. Each is left out where it would be empty.

    Raises:
        InputError: weights differ, or an SAE that the run trained would sit where it was not trained.
    """
    differs, unchecked = [], []
    model, then = now["model"], recorded["model"]
    same = same_model(model, then)
    if same is None:
        unchecked.append(f"whether model {model_name(model)} is the one that the adapter was made with, {then['ref']}")
    elif not same:
        differs.append(("model", model_name(model), model_name(then), "MODEL and --revision"))
    if not same_saes(now["saes"], recorded["saes"]):
        differs.append(("SAE", sae_names(now["saes"]), sae_names(recorded["saes"]), "--sae and --hookpoint"))
    trained = recorded.get("tuned_saes", [])
    if trained and {s["hookpoint"] for s in now["saes"]} != {s["hookpoint"] for s in trained}:
        raise InputError(
            f"{adapter} trained an SAE at {', '.join(s['hookpoint'] for s in trained)}, but --sae names "
            f"{sae_names(now['saes'])}: name an SAE there, or leave out --sae"
        )
    for kind, found, before, flag in differs if not forced else []:
        if given & {"model": {"model", "revision"}, "SAE": {"sae", "hookpoint"}}[kind]:
            raise InputError(
                f"{adapter} was made with {kind} {before}, not with {found}: leave out {flag} for its own, or say "
                "--other-weights to measure it with this one all the same"
            )
        raise InputError(
            f"{kind} {found} has changed since the adapter was made, with {before}: bring that one back, or say "
            "--other-weights to measure the adapter with this one all the same"
        )
    told = [f"{kind} {found}; the adapter was made with {before}" for kind, found, before, _ in differs]
    return {key: value for key, value in (("other_weights", told), ("unchecked", unchecked)) if value}


def adapter_now(folder: str, recorded: dict[str, Any] | None, forced: bool) -> dict[str, Any]:
    """What identifies a run's adapter: {"adapter": fingerprint}; nothing where it has none.

    Raises:
        InputError: it is not the one that the run ended with, and that is not ``forced``.
    """
    found = adapter_fingerprint(Path(folder))
    then = (recorded or {}).get("adapter")
    if then is not None and found != then and not forced:
        raise InputError(
            f"adapter {folder} has changed since its run ended (fingerprint {then}, now {found}): bring that one back, "
            "or say --other-weights to measure this one all the same"
        )
    told = [f"adapter {found}; its run ended with {then}"] if then is not None and found != then else []
    return {**({"adapter": found} if found else {}), **({"other_weights": told} if told else {})}


def described(
    config: EvaluateConfig, assembled: Assembled, recorded: dict[str, Any] | None, given: Set[str], console: Console
) -> dict[str, Any]:
    """What is measured: as ``saelora.manifest.describe``, the adapter, what was forced, what could not be checked.

    Raises:
        InputError: the adapter was made for other weights, or has changed, and that is not forced.
    """
    about = describe(assembled)
    if config.adapter is None:
        return about
    if recorded is not None:
        told = check_made_for(about, recorded, given, config.adapter, config.other_weights)
    else:
        told = {"unchecked": [f"model, SAEs and text that {config.adapter} was made with: it has no {MANIFEST}"]}
    adapter = adapter_now(config.adapter, recorded, config.other_weights)
    forced = [*told.pop("other_weights", []), *adapter.pop("other_weights", [])]
    for line in forced:
        console.say(f"forced by --other-weights: {line}")
    for line in told.get("unchecked", []):
        console.say(f"not checked: {line}")
    return {**about, **told, **adapter, **({"other_weights": forced} if forced else {})}
