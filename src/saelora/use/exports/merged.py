"""--to merged: the adapter folded into the weights, as a folder that plain transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelora.assemble import validation_rows
from saelora.core.merging import plain_copy
from saelora.core.splice import splice
from saelora.errors import InputError, on_one_line
from saelora.evals.loss import evaluate_loss
from saelora.identity import kind_of
from saelora.models.loading import quiet_transformers
from saelora.saes.saelens import is_installed
from saelora.use.exports import policy
from saelora.use.exports.saelens import write_saes
from saelora.use.exports.target import Export, check_adapter, check_equal, largest, rows_of
from saelora.use.run import LoadedRun

SAES = "saes"


def export(loaded: LoadedRun, folder: Path, dtype: str, config: Any) -> Export:
    """Write the merged model, load it by transformers, and run both sides with the SAEs and without.

    Args:
        config: options of the run's text (DataConfig), with ``eval_tokens`` to measure on; None: no text.
    """
    check_adapter(loaded, "merged")
    if loaded.replacement.needs_clean:
        raise InputError(
            "this run's transcoders read the original's stream, or add its errors (--replacement-mode, --add-error), "
            "and a merged model has no original any more: use --to peft"
        )
    plain = plain_copy(loaded.model, merged=True)
    rows = rows_of(loaded)
    with loaded.adapted_clean():
        ours = [loaded.logits(row) for row in rows]
    exact = largest(ours, _logits(plain, rows))
    check_equal(exact, ours, "the model with its adapter merged")
    found = {"adapted_clean, merged": exact}
    notes = _through_saes(loaded, folder, plain, rows, found)
    target = getattr(torch, _dtype_of(loaded) if dtype == "auto" else dtype)
    plain = plain.to(target)
    with quiet_transformers():
        plain.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    read = _read(folder)
    _check_kept(plain, read)
    found[f"adapted_clean, in {_name(target)}, read by transformers"] = largest(ours, _logits(read, rows))
    if target is not torch.float32:
        notes.append(f"Read again bit for bit as it was written: what differs in {_name(target)} is its rounding.")
    figures, told = _cost_of_rounding(loaded, read, target, config)
    return Export(found, [*notes, told], figures=figures)


def _through_saes(
    loaded: LoadedRun, folder: Path, plain: Any, rows: list[Tensor], found: dict[str, float]
) -> list[str]:
    """SAEs and script beside the model, where they can be; run on it in float32, into ``found``."""
    with loaded.adapted():
        ours = [loaded.logits(row) for row in rows]
    with splice(plain, loaded.saes_of_default, loaded.token_mask, replacement=loaded.replacement):
        found["adapted, spliced by saelora"] = largest(ours, _logits(plain, rows))
    check_equal(found["adapted, spliced by saelora"], ours, "the merged model through its SAEs")
    why, kind = policy.why_no_script(loaded), kind_of(*loaded.about.saes)
    if why is not None:
        notes = [f"There is no {policy.SCRIPT}: {why}; run it through its {kind.many} with saelora."]
        trained = [] if loaded.run.manifest is None else loaded.run.manifest.tuned_saes
        if trained:
            notes.append(
                f"It belongs to what the run trained from the {kind.many} named above, not to these themselves: "
                f"the folders {', '.join(each.folder for each in trained)} of {loaded.run.ref}."
            )
        return notes
    names = {name: f"{SAES}/{name}" for name in write_saes(loaded, folder / SAES)}
    if not is_installed():
        (folder / policy.SCRIPT).write_text(policy.script(loaded, names), encoding="utf-8")
        return [f"{policy.SCRIPT} was not run: SAELens, which it needs, is not installed."]
    found[f"adapted, by {policy.SCRIPT}"] = policy.write_script(loaded, folder, names, plain, rows, ours)
    return [policy.note(loaded, rows, ours)]


def _cost_of_rounding(
    loaded: LoadedRun, read: nn.Module, target: torch.dtype, config: Any
) -> tuple[dict[str, Any], str]:
    """How much of what the adapter won the rounded weights still win, on held-out rows."""
    if config is None or not config.data or not config.eval_tokens:
        return {}, "What the rounding costs was not measured: no held-out text."
    try:
        rows = validation_rows(config, loaded.loaded)
    except InputError as error:
        return {}, f"What the rounding costs was not measured: {on_one_line(error)}"
    saes, kind = loaded.saes_of_default, kind_of(*loaded.about.saes)
    with loaded.adapted_clean():
        own = evaluate_loss(
            loaded.model,
            saes,
            loaded.token_mask,
            rows,
            arms=["sae", "adapted"],
            check=False,
            # what the adapter wins is set against the SAE as it came, also where the run trained it
            reference=loaded.saes_before if loaded.saes_before != saes else None,
            replacement=loaded.replacement,
        )
    after = evaluate_loss(
        read, saes, loaded.token_mask, rows, arms=["sae"], check=False, replacement=loaded.replacement
    )
    won, left = own["ce_sae"] - own["ce_adapted"], own["ce_sae"] - after["ce_sae"]
    figures = {
        "ce_base": own["ce_base"],
        "ce_sae": own["ce_sae"],
        "ce_adapted": own["ce_adapted"],
        "ce_merged": after["ce_sae"],
        "n_tokens_evaluated": own["n_tokens_evaluated"],
    }
    told = (
        f"On {own['n_tokens_evaluated']:,} held-out predictions: cross entropy through the {kind.of(len(saes))} "
        f"{own['ce_sae']:.4f}, adapted {own['ce_adapted']:.4f}, merged in {_name(target)} {after['ce_sae']:.4f} nats"
    )
    if won <= 0:
        return figures, f"{told}; the adapter won nothing there."
    figures["gain_kept"] = left / won
    return figures, f"{told}: of what the adapter won, {left / won:.1%} is left (weights rounded, computed in float32)."


def _check_kept(written: nn.Module, read: nn.Module) -> None:
    """Raise InputError unless the weights that were read are those that were written, bit for bit."""
    there = read.state_dict()
    for name, tensor in written.state_dict().items():
        if name not in there or not torch.equal(there[name], tensor.to(there[name].dtype)):
            raise InputError(f"transformers reads another {name} than was written: export --to peft, and merge by PEFT")


def _read(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _logits(model: Any, rows: list[Tensor]) -> list[Tensor]:
    return [model(input_ids=row).logits for row in rows]


def _dtype_of(loaded: LoadedRun) -> str:
    """The precision that the base's own files are in, as its configuration has it; else float32."""
    stated = str(getattr(loaded.loaded.model.config, "dtype", None)).removeprefix("torch.")
    return stated if stated in ("float32", "bfloat16", "float16") else "float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
