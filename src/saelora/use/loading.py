"""saelora.load: a finished run -> one object."""

from pathlib import Path
from typing import Any

from saelora.collector import resting
from saelora.config import build
from saelora.console import Console
from saelora.errors import InputError
from saelora.identity import About, ModelId, PolicyRecord, model_name, same_model
from saelora.jobs import evaluate
from saelora.jobs.recorded import described, with_recorded, with_trained
from saelora.manifest import describe
from saelora.named import check_model, check_saes, model_of
from saelora.use.reference import Run, find_run, recorded_about
from saelora.use.run import LoadedRun

_OWN = {"adapter", "parts", "out", "overwrite", "other_weights", "quiet", "device", "dtype", "shard", "compile"}
_HERE = (
    *("model", "revision", "sae", "hookpoint", "transcoders", "transcoder_layers"),
    *("device", "dtype", "exempt", "other_weights", "sparse_decode"),
)


def load(ref: str | Path, **options: Any) -> LoadedRun:
    """The model of a finished run with its SAEs and its adapter, ready to be used.

    Args:
        ref: the folder of a run (``saelora adapt``, ``finetune-sae``, ``train-sae``), or a hub repository that holds
            one, owner/name[/folder/inside].
        options: of ``saelora evaluate``, which reads a run in the same way: ``device``, ``dtype``; ``model`` where its
            own lies elsewhere by now (a copy of it is one), ``sae``, ``hookpoint``, ``transcoders`` and
            ``transcoder_layers`` likewise; ``other_weights=True``
            takes weights that the run was not made with.

    Raises:
        InputError: no such run, or its model, SAEs or adapter are missing, damaged, or not those that it was made with.
    """
    with resting():
        return load_run(find_run(ref), options)


def load_run(run: Run, options: dict[str, Any]) -> LoadedRun:
    """``load`` of a run that was found."""
    unknown = [name for name in options if name not in _HERE]
    if unknown:
        raise InputError(f"load knows no option {unknown[0]!r}: expected {', '.join(_HERE)}")
    return _load_trained(run, options) if run.manifest is None else _load_adapted(run, options)


def _load_adapted(run: Run, options: dict[str, Any]) -> LoadedRun:
    recorded = run.manifest
    assert recorded is not None
    config = build(evaluate.Config, {**options, "adapter": str(run.folder)}, "load")
    given = config.given
    config = with_recorded(config, recorded, _OWN)
    assembled = _assembled(config, recorded.token_policy)
    about = described(config, assembled, recorded, given, Console(quiet=True))
    model, tuned, about = with_trained(config, assembled, recorded, about)
    return LoadedRun(run, assembled, model, tuned, about)


def _load_trained(run: Run, options: dict[str, Any]) -> LoadedRun:
    """SAEs of train-sae, in the model that they were trained on."""
    then = run.training or {}
    values = {name: then[name] for name in ("model", "revision", "exempt") if then.get(name) is not None}
    values = {**values, "sae": [str(folder) for folder in run.saes], **options}
    about = About.read(recorded_about(run.saes[0]), run.saes[0], "train it anew, or name another run")
    config = build(evaluate.Config, values, "load")
    assembled = _assembled(config, about.token_policy)
    found = describe(assembled)
    _check_same_model(run, found.model, about.model, bool(options.get("other_weights")))
    return LoadedRun(run, assembled, assembled.loaded.model, {}, found)


def _check_same_model(run: Run, now: ModelId | None, then: ModelId | None, forced: bool) -> None:
    if now is not None and then is not None and same_model(now, then) is False and not forced:
        raise InputError(
            f"{run.ref} was trained on {model_name(then)}, not on {model_name(now)}: give that as model, or say "
            "other_weights=True"
        )


def _assembled(config: evaluate.Config, policy: PolicyRecord | None) -> Any:
    """Model and SAEs; the text is not asked for, unless limits on massive positions are to be measured on it."""
    check_model(model_of(config), config)
    check_saes(config)
    from saelora.assemble import assemble
    from saelora.models.loading import load_model, pick_device, resolve_dtype

    device = pick_device(config.device)
    loaded = load_model(
        model_of(config), device=device, dtype=resolve_dtype(config.dtype, device), revision=config.revision
    )
    return assemble(config, loaded=loaded, recorded_policy=policy)
