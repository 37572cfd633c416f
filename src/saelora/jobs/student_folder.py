"""What training leaves to load again: a PEFT adapter, and SAEs in SAELens's native format."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from saelora.assemble import Assembled
from saelora.config import to_dict
from saelora.errors import InputError
from saelora.evals.loss_result import RunResult
from saelora.files import whole_files, whole_folder
from saelora.jobs.training_options import StudentConfig
from saelora.manifest import MANIFEST, RESULTS, Manifest, TrainedSAE, describe, environment, write_json
from saelora.models.adapters import adapter_fingerprint
from saelora.models.hookpoints import Hookpoint, ReadPoint, parse_hookpoint
from saelora.reporting.card import card
from saelora.saes.build import fingerprint
from saelora.saes.loading import LoadedSAE, load_sae
from saelora.saes.saving import save_sae
from saelora.saes.transcoder import Transcoder

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def save_adapter(model: Any, folder: Path, name: str | None = None) -> None:
    """Write an adapter in PEFT's format: both files, or neither.

    Args:
        name: of the adapter, where the model has several.
    """
    with whole_files(folder, ADAPTER_FILES) as part:
        model.save_pretrained(part, selected_adapters=None if name is None else [name])
        if name is not None:
            for file in ADAPTER_FILES:
                (part / name / file).replace(part / file)


def save_run(
    model: Any, name: str, config: StudentConfig, assembled: Assembled, results: RunResult, folder: Path
) -> None:
    """Write one of several adapters of a model as a run of its own, for evaluate and report; whole or not at all.

    Args:
        name: the adapter's in the model.
        results: what its results.json is to hold; ``about`` gets the adapter's fingerprint.
    """
    with whole_folder(folder) as part:
        save_adapter(model, part, name)
        adapter = adapter_fingerprint(part)
        assert results.about is not None
        results = results.model_copy(update={"about": results.about.having(adapter=adapter)})
        manifest = manifest_of(config, assembled, results, adapter=adapter)
        write_json(part / MANIFEST, manifest)
        write_json(part / RESULTS, results)
        (part / "README.md").write_text(card(manifest, results), encoding="utf-8")
        values = {key: value for key, value in to_dict(config).items() if key not in ("out", "resume", "overwrite")}
        (part / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def manifest_of(
    config: StudentConfig,
    assembled: Assembled,
    results: RunResult,
    *,
    adapter: str | None,
    saved: Sequence[TrainedSAE] = (),
    n_documents: int | None = None,
) -> Manifest:
    """What a run's saelora.json holds.

    Args:
        adapter: its fingerprint, None where none was trained.  saved: what ``save_saes`` returned.  n_documents: that
            were trained on, where they were counted.
    """
    about = describe(assembled)
    assert about.model is not None
    made = Manifest(
        model=about.model,
        saes=about.saes,
        token_policy=about.token_policy,
        adapter=adapter,
        method=config.method,
        tuned_saes=list(saved),
        config=to_dict(config),
        environment=environment(),
        metrics={k: v for k, v in results.to_json().items() if isinstance(v, int | float)},
    )
    return made if n_documents is None else made.model_copy(update={"n_documents_trained": n_documents})


def save_saes(
    saes: dict[Hookpoint, Any], assembled: Assembled, about: Mapping[str, object], folder: Path, below: str
) -> list[TrainedSAE]:
    """Write trained SAEs: one into ``folder/below``, several into a folder of its hookpoint's name each in there.

    Args:
        about: how they were trained; goes into each SAE's metadata, with the SAE that it was made from.
        below: a folder's name, or "" for ``folder`` itself.

    Returns:
        For the manifest.
    """
    saved = []
    for hookpoint, sae in saes.items():
        came = assembled.saes[hookpoint]
        if isinstance(sae, Transcoder):
            assert sae.reads is not None
            sae.cfg.metadata = SimpleNamespace(
                model_name=came.model_name,
                hook_name=ReadPoint(hookpoint.layer, sae.reads).tl_name,
                hook_name_out=hookpoint.tl_name,
            )
        sae.cfg.metadata.saelora_tuned = {
            "version": importlib.metadata.version("saelora"),
            "from": {"ref": came.ref, "fingerprint": came.fingerprint},
            **about,
        }
        relative = Path(below) if len(saes) == 1 else Path(below) / str(hookpoint)
        save_sae(sae, folder / relative)
        saved.append(TrainedSAE(hookpoint=str(hookpoint), folder=str(relative), fingerprint=fingerprint(sae)))
    return saved


def load_tuned_saes(
    folder: Path, trained: Sequence[TrainedSAE], device: torch.device, *, forced: bool = False
) -> dict[Hookpoint, LoadedSAE]:
    """The SAEs that a run trained, by its manifest's ``tuned_saes``.

    Raises:
        InputError: one is missing or damaged, or is not the one that the run ended with and that is not ``forced``.
    """
    found = {}
    for entry in trained:
        hookpoint = parse_hookpoint(entry.hookpoint)
        loaded = load_sae(str(folder / entry.folder), hookpoint=hookpoint, device=device)
        if loaded.fingerprint != entry.fingerprint and not forced:
            raise InputError(
                f"SAE {folder / entry.folder} has changed since its run ended (fingerprint {entry.fingerprint}, "
                f"now {loaded.fingerprint}): evaluate it as any other, with --sae and without --adapter, or say "
                "--other-weights"
            )
        found[hookpoint] = loaded
    return found
