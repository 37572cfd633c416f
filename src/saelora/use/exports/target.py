"""What every export has: the run, where it goes, and what was found when both sides were run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora.core.transcoding import transcoder_in
from saelora.errors import InputError
from saelora.models.adapters import ADAPTER_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from saelora.use.run import LoadedRun

TEXTS = (  # what both sides read; of many kinds, so that much of the vocabulary is met
    "Fellow citizens, the state of our union is strong, and it has been so for 200 years.",
    "def add(a, b):\n    return a + b  # 1 + 2 == 3",
    "Der Himmel ist blau; el cielo es azul.",
)


@dataclass(frozen=True)
class Export:
    """What was written, and what was seen when it was run beside the original.

    Args:
        difference: the largest of logits, by what was compared.
        not_run: why the other side was not run; None where it was.
        notes: sentences for the terminal and the README.
        figures: for JSON.
    """

    difference: dict[str, float]
    notes: list[str]
    not_run: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def check_adapter(loaded: LoadedRun, to: str) -> Path:
    """The folder of a run's adapter; InputError where it trained none."""
    if not (loaded.run.folder / ADAPTER_CONFIG).is_file():
        transcoders = any(transcoder_in(sae) is not None for sae in loaded.saes_of_default.values())
        remedy = (
            "the transcoders that it trained are in its folder, in SAELens's format"
            if transcoders
            else "its SAEs go --to saelens"
        )
        raise InputError(f"{loaded.run.ref} trained no adapter, so that there is nothing to export --to {to}: {remedy}")
    return loaded.run.folder


def rows_of(loaded: LoadedRun) -> list[Tensor]:
    """Token ids [1, seq] that both sides are run on, as they are put before the model everywhere."""
    from saelora.use.prompts import encode

    return [encode(loaded.tokenizer, text, loaded.n_embedded, loaded.base).input_ids[:, :32] for text in TEXTS]


def largest(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference between logits of the same rows."""
    return max(float((a.float().cpu() - b.float().cpu()).abs().max()) for a, b in zip(one, other, strict=True))


def is_equal(difference: float, logits: list[Tensor], within: float = 1e-4) -> bool:
    """Whether logits that should be the same are, up to a share of the largest: of rounding in float32."""
    return difference <= within * max(_scale(logits), 1.0)


def _scale(logits: list[Tensor]) -> float:
    return max(float(each.float().abs().max()) for each in logits)


def check_equal(difference: float, logits: list[Tensor], what: str, within: float = 1e-4) -> None:
    """Raise InputError where two sides that should compute the same do not, up to rounding in float32."""
    if not is_equal(difference, logits, within):
        scale = _scale(logits)
        raise InputError(
            f"{what} gives logits that differ by {difference:.3g} (the largest is {scale:.3g}), so nothing was "
            "exported: this kind of adapter or model is not carried over exactly"
        )
