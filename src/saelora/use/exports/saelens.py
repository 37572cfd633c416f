"""--to saelens: the SAEs of a run as SAELens reads them, and the lines that splice them with the run's token policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from saelora.core.merging import plain_copy
from saelora.core.splice import splice
from saelora.core.transcoding import transcoder_in
from saelora.errors import InputError
from saelora.saes.saelens import need_saelens
from saelora.saes.saving import save_sae
from saelora.use.exports import policy
from saelora.use.exports.target import Export, check_equal, largest, rows_of
from saelora.use.run import LoadedRun


def write_saes(loaded: LoadedRun, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Each SAE of the current variant in a folder of its hookpoint's name; their names.

    Raises:
        InputError: a transcoder, which SAELens's SAE classes are not.
    """
    names = {}
    for hookpoint, sae in loaded.saes_of_default.items():
        if transcoder_in(sae) is not None:
            raise InputError(
                f"a transcoder writes at {hookpoint}, --to saelens is for SAEs: its own files are the "
                "export, those of a run that trained it in the run's folder"
            )
        inner: Any = getattr(sae, "sae", sae)
        plain = copy.deepcopy(inner).to("cpu", dtype)
        plain.cfg.dtype = str(dtype).removeprefix("torch.")
        metadata = plain.cfg.metadata
        metadata.hook_name = hookpoint.tl_name
        metadata.model_name = metadata.model_name or loaded.base
        metadata.prepend_bos = loaded.tokenizer.bos_token_id is not None
        save_sae(plain, folder / str(hookpoint))
        names[str(hookpoint)] = str(hookpoint)
    return names


def export(loaded: LoadedRun, folder: Path, dtype: str) -> Export:
    """Write the SAEs, read them by SAELens, and run the model through them, by our splice and by the script's."""
    need_saelens("--to saelens")
    names = write_saes(loaded, folder, getattr(torch, "float32" if dtype == "auto" else dtype))
    rows = rows_of(loaded)
    ours = [loaded.logits(row) for row in rows]
    difference = largest(ours, _read_again(loaded, folder, names, rows))
    exact = dtype in ("auto", "float32")
    if exact:
        check_equal(difference, ours, "the SAE that SAELens reads")
    found = {f"{loaded.variant}, the SAE read by SAELens": difference}
    notes = [f"`SAE.load_from_disk` reads each folder: {', '.join(names)}."]
    why = policy.why_no_script(loaded)
    if why is None:
        plain = plain_copy(loaded.model, merged=loaded.has_adapter)
        found[f"{loaded.variant}, by {policy.SCRIPT}"] = policy.write_script(loaded, folder, names, plain, rows, ours)
    notes.append(
        policy.note(loaded, rows, ours) if why is None else f"There is no {policy.SCRIPT}: {why}; use saelora.load."
    )
    return Export(found, notes)


def _read_again(loaded: LoadedRun, folder: Path, names: dict[str, str], rows: list[torch.Tensor]) -> list[torch.Tensor]:
    from sae_lens import SAE

    read: Any = {h: SAE.load_from_disk(str(folder / names[str(h)])).float() for h in loaded.hookpoints}
    read = {hookpoint: sae.to(loaded.device) for hookpoint, sae in read.items()}
    with loaded.as_variant(policy.without_saes(loaded)), splice(loaded.model, read, loaded.token_mask):
        return [loaded.logits(row) for row in rows]
