"""What exports with a script of their own have in common: a plain model, its SAEs, and the script run beside ours."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from torch import Tensor

from saelora.core.merging import plain_copy
from saelora.errors import InputError, on_one_line
from saelora.manifest import version_of
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import quiet_transformers
from saelora.use.exports import policy
from saelora.use.exports.saelens import write_saes
from saelora.use.exports.target import Export, check_equal, largest, rows_of
from saelora.use.run import LoadedRun

SAES = "saes"
# in which a layer computes them
_ORDER = ("resid_pre", "attn_z", "attn_module_out", "attn_out", "mlp_module_out", "mlp_out", "resid_post")
# the end of a script that has ``load`` and ``logits``
MAIN = """if __name__ == "__main__":
    model = load()
    text = (model.tokenizer.bos_token or "") + "Once upon a time"
    ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    for through in (False, True):
        top = logits(model, ids, through)[0, -1].topk(5)
        words = [model.tokenizer.decode([i]) for i in top.indices.tolist()]
        print("through its SAEs:" if through else "model alone:", words)
"""


def export(loaded: LoadedRun, folder: Path, dtype: str, name: str, script: str, package: str) -> Export:
    """Write the model with its adapter merged, its SAEs and a script; run the script, where its package is installed.

    Args:
        name: the script's file name.
        script: its text; it defines ``load()`` and ``logits(model, ids, through_saes)``.
    """
    model = plain_copy(loaded.model, merged=loaded.has_adapter).to(torch.float32)
    exact = dtype in ("auto", "float32")
    with quiet_transformers():
        (model if exact else model.to(getattr(torch, dtype))).save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    write_saes(loaded, folder / SAES)
    (folder / name).write_text(script, encoding="utf-8")
    rows = rows_of(loaded)
    ours = [loaded.logits(row) for row in rows]
    with loaded.as_variant(policy.without_saes(loaded)):
        clean = [loaded.logits(row) for row in rows]
    if version_of(package) is None:
        why = f"{package} is not installed beside saelora"
        return Export({}, [f"`{name}` was not run: {why}.", _off(loaded, name, rows, ours)], not_run=why)
    with quiet_transformers():
        found = _by_script(folder / name, package, rows)
    without, through = largest(clean, found[False]), largest(ours, found[True])
    if exact:
        check_equal(without, clean, f"the model that {package} reads")
        check_equal(through, ours, f"the model through its SAEs by {package}")
    variant = policy.without_saes(loaded)
    difference = {f"{variant}, by {package}": without, f"{loaded.variant}, by {name}": through}
    return Export(difference, [_off(loaded, name, rows, ours)])


def _by_script(path: Path, package: str, rows: list[Tensor]) -> dict[bool, list[Tensor]]:
    """What the script computes for each row, without the SAEs and through them."""
    defined = runpy.run_path(str(path))
    try:
        model = defined["load"]()
        return {through: [defined["logits"](model, row, through) for row in rows] for through in (False, True)}
    except Exception as error:  # of the other library, about a model or a hook that it does not know
        raise InputError(
            f"{package} does not run this model ({type(error).__name__}: {on_one_line(error, 200)}): export --to merged"
        ) from error


def _off(loaded: LoadedRun, name: str, rows: list[Tensor], ours: list[Tensor]) -> str:
    return (
        f"`{name}` leaves alone what the run's token policy does. Hooks that replace every position, BOS too, give "
        f"logits that differ by up to {policy.off_by(loaded, rows, ours):.2f} on the same texts."
    )


def check_scripted(loaded: LoadedRun, to: str) -> None:
    """Raise InputError where a few lines of another library cannot run the SAEs as the run did."""
    why = policy.why_no_script(loaded)
    if why is not None:
        raise InputError(f"this run is not exported --to {to}: {why}; use --to merged or peft, and saelora.load")


def in_order(hookpoints: tuple[Hookpoint, ...]) -> list[Hookpoint]:
    """Hookpoints in the order in which a pass meets them."""
    return sorted(hookpoints, key=lambda each: (each.layer, _ORDER.index(each.site)))
