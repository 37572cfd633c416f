"""A finished run as a later command takes it up: its manifest, its options, whether its weights are the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora.config import C, updated
from saelora.console import Console
from saelora.errors import InputError
from saelora.evals.registry import of_trained_saes
from saelora.identity import TRANSCODER, About, kind_of, model_name, sae_names, same_model, same_saes
from saelora.jobs.training_options import ADAPTED
from saelora.manifest import MANIFEST, Manifest, describe, read_json
from saelora.models.adapters import ADAPTER_CONFIG, adapter_fingerprint

if TYPE_CHECKING:
    from torch import nn

    from saelora.assemble import Assembled
    from saelora.jobs.evaluate import Config, EvaluateConfig
    from saelora.models.hookpoints import Hookpoint

BESIDE = "./saes/"  # how the manifest of a run that was pushed names SAEs that lie in its repository
# what says how a model, an SAE or a text is read goes with it: one that is given is not read as the run's own was
_COMPANIONS = {
    "model": ("revision",),
    "sae": ("hookpoint",),
    "transcoders": ("transcoder_layers",),
    "data": ("subset", "split", "text_column"),
}


def with_recorded(config: C, recorded: Manifest, own: Collection[str]) -> C:
    """Options that were not given, ``own`` aside, are taken from the run with this manifest."""
    then, given = recorded.config, config.given
    kept = {*own, *given, *(name for whole in given & _COMPANIONS.keys() for name in _COMPANIONS[whole])}
    values = {name: then[name] for name in vars(config) if name in then and name not in kept}
    if "model" not in kept and "revision" not in given:
        values["revision"] = recorded.model.revision  # the commit, where a branch may have moved on
    return updated(config, values, "the adapter's recorded configuration")


def recorded_run(folder: Path) -> Manifest | None:
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
    return _with_saes_beside(Manifest.read(found, path, "bring it back as its run left it, or run adapt anew"), folder)


def _with_saes_beside(manifest: Manifest, folder: Path) -> Manifest:
    """SAEs that lie in the run's own folder, as ``saelora push`` puts them there, are those that are read."""
    config = dict(manifest.config)
    for key in {"sae", "transcoders"} & config.keys():
        beside = [ref.startswith(BESIDE) and (folder / ref).exists() for ref in config[key] or []]
        config[key] = [str(folder / ref) if here else ref for ref, here in zip(config[key] or [], beside, strict=True)]
    return manifest.model_copy(update={"config": config})


def fitting_parts(parts: list[str], named: Sequence[str], recorded: Manifest, adapter: str) -> list[str]:
    """The parts that have something to say of a run; of one that trained its SAE, ``all`` stands for those alone.

    Args:
        named: as they were asked for, "all" perhaps among them.

    Raises:
        InputError: one is named that has nothing to say of a run that trained its SAE.
    """
    if not recorded.tuned_saes:
        return parts
    known = of_trained_saes(transcoders=bool(recorded.config.get("transcoders")))
    others = [part for part in parts if part not in known and part in named]
    if others:
        own = "transcoder" if kind_of(*recorded.saes) is TRANSCODER else "SAE"
        raise InputError(
            f"--parts {others[0]} is about an adapter around a frozen {own}, {adapter} trained its {own} (method "
            f"{recorded.method}): expected --parts {' '.join(known)}, or some of them"
        )
    return [part for part in parts if part in known]


def check_made_for(
    now: About, recorded: Manifest, given: Set[str], adapter: str, forced: bool
) -> tuple[list[str], list[str]]:
    """Refuse a model, SAE or adapter whose weights are not those that the run with this manifest was made with.

    Args:
        now: what is there now.
        given: options that were given: a model or an SAE of the run's own has changed, another was named.
        forced: go on all the same.

    Returns:
        What is to stand beside the results: what differs and was forced; what could not be compared.

    Raises:
        InputError: weights differ, or an SAE that the run trained would sit where it was not trained.
    """
    differs, unchecked = [], []
    model, then = now.model, recorded.model
    assert model is not None
    same = same_model(model, then)
    if same is None:
        unchecked.append(f"whether model {model_name(model)} is the one that the adapter was made with, {then.ref}")
    elif not same:
        differs.append(("model", model_name(model), model_name(then), "MODEL and --revision"))
    if not same_saes(now.saes, recorded.saes):
        differs.append(("SAE", sae_names(now.saes), sae_names(recorded.saes), "--sae and --hookpoint"))
    trained = recorded.tuned_saes
    if trained and {s.hookpoint for s in now.saes} != {s.hookpoint for s in trained}:
        raise InputError(
            f"{adapter} trained an SAE at {', '.join(s.hookpoint for s in trained)}, but --sae names "
            f"{sae_names(now.saes)}: name an SAE there, or leave out --sae"
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
    return [f"{kind} {found}; the adapter was made with {before}" for kind, found, before, _ in differs], unchecked


def adapter_now(folder: str, recorded: Manifest | None, forced: bool) -> tuple[str | None, list[str]]:
    """What identifies a run's adapter, its fingerprint, None where it has none; and in words what was forced.

    Raises:
        InputError: it is not the one that the run ended with, and that is not ``forced``.
    """
    found = adapter_fingerprint(Path(folder))
    then = None if recorded is None else recorded.adapter
    if then is not None and found != then and not forced:
        raise InputError(
            f"adapter {folder} has changed since its run ended (fingerprint {then}, now {found}): bring that one back, "
            "or say --other-weights to measure this one all the same"
        )
    return found, [f"adapter {found}; its run ended with {then}"] if then is not None and found != then else []


def described(
    config: EvaluateConfig, assembled: Assembled, recorded: Manifest | None, given: Set[str], console: Console
) -> About:
    """What is measured: as ``saelora.manifest.describe``, the adapter, what was forced, what could not be checked.

    Raises:
        InputError: the adapter was made for other weights, or has changed, and that is not forced.
    """
    about = describe(assembled)
    if config.adapter is None:
        return about
    if recorded is not None:
        forced, unchecked = check_made_for(about, recorded, given, config.adapter, config.other_weights)
    else:
        forced, unchecked = [], [f"model, SAEs and text that {config.adapter} was made with: it has no {MANIFEST}"]
    adapter, changed = adapter_now(config.adapter, recorded, config.other_weights)
    forced = [*forced, *changed]
    for line in forced:
        console.say(f"forced by --other-weights: {line}")
    for line in unchecked:
        console.say(f"not checked: {line}")
    told = {"unchecked": unchecked, "adapter": adapter, "other_weights": forced}
    return about.having(**{key: value for key, value in told.items() if value})


def with_trained(
    config: Config, assembled: Assembled, recorded: Manifest | None, about: About
) -> tuple[nn.Module, dict[Hookpoint, Any], About]:
    """The model with the run's adapter, where it trained one, the SAEs that it trained, and ``about`` with these."""
    from saelora.jobs.student_folder import load_tuned_saes
    from saelora.models.adapters import load_adapter
    from saelora.models.loading import pick_device

    model: nn.Module = assembled.loaded.model
    if config.adapter is None:
        return model, {}, about
    if recorded is None or recorded.method in ADAPTED:
        model = load_adapter(model, config.adapter)
    trained = [] if recorded is None else recorded.tuned_saes
    tuned = load_tuned_saes(Path(config.adapter), trained, pick_device(config.device), forced=config.other_weights)
    if tuned:
        now = {str(hookpoint): sae.fingerprint for hookpoint, sae in tuned.items()}
        about = about.having(tuned_saes=now)
        if now != {sae.hookpoint: sae.fingerprint for sae in trained}:
            about = about.having(other_weights=[*about.other_weights, "a trained SAE that has changed since"])
    return model, {hookpoint: found.sae for hookpoint, found in tuned.items()}, about
