"""What the losses of a model's variants are, and the figures of its SAEs. Imports no torch: reports read them too.

Cross entropies (ce) and KL to the original model are in nats per predicted token, all other figures shares.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import model_validator

from saelora.evals.estimate import Estimate
from saelora.evals.variant import Variant
from saelora.identity import About
from saelora.records import Interval, Number, Record, misfit

FigureName = Literal[
    "ce_base",
    "ce_sae",
    "kl_sae",
    "top1_sae",
    "ce_adapted",
    "kl_adapted",
    "top1_adapted",
    "ce_adapted_clean",
    "kl_adapted_clean",
    "top1_adapted_clean",
    "ce_zero",
    "kl_zero",
    "top1_zero",
    "ce_gap",
    "ce_gain",
    "gap_closed",
    "loss_recovered_sae",
    "loss_recovered_adapted",
]


class MeanFigures(Record):
    """How well SAEs reconstruct, and how they fire: see ``saelora.core.spread`` for what stands beside FVU.

    Args:
        fvu, l0, dead_frac: None where they are not finite.
        l0: active latents per token.
        dead_frac: share of latents that never fired on these tokens.
        n_massive: positions that were spared as massive.
    """

    fvu: Number | None
    relative_error: Number | None = None
    relative_error_q10: Number | None = None
    relative_error_q90: Number | None = None
    top_variance: Number | None = None
    fvu_rest: Number | None = None
    l0: Number | None
    dead_frac: Number | None
    n_massive: Number | None = None


class SAEFigures(MeanFigures):
    """The figures of one SAE.

    Args:
        n_massive: of n_positions; massive_limit: the norm above which they are.
    """

    fvu: Number
    l0: Number
    dead_frac: Number
    n_positions: Number | None = None
    massive_limit: Number | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        for first, *others in _TOGETHER:
            if first in self.model_fields_set and not self.model_fields_set >= set(others):
                raise misfit(f"has {first} without {' and '.join(others)}")
        return self


_TOGETHER: list[tuple[str, ...]] = [("relative_error", "relative_error_q10", "relative_error_q90")]
_TOGETHER += [("n_massive", "n_positions", "massive_limit")]


class RowStarts(Record):
    """How rows of text begin: see ``TokenMask.row_starts``."""

    n_rows: int
    n_without_exempt_token: int
    n_positions_spared: int


class VariantLoss(NamedTuple):
    """The losses of one variant; the original model has a cross entropy alone."""

    ce: float
    kl: float | None
    top1: float | None
    loss_recovered: float | None


class LossFigures(Record):
    """The losses of the variants that were measured, what is derived from them, and 95 % intervals.

    Args:
        top1_*: share of predictions whose likeliest token is the original model's.
        ce_gap: what the SAE costs, ce_sae - ce_base; ce_gain: what the adapter wins back of it, ce_sae - ce_adapted.
        gap_closed: their ratio; None where there is no gap.
        loss_recovered_*: 1 is the original model, 0 the one with zeros for the SAE's output.
    """

    ce_base: Number
    ce_sae: Number | None = None
    kl_sae: Number | None = None
    top1_sae: Number | None = None
    ce_adapted: Number | None = None
    kl_adapted: Number | None = None
    top1_adapted: Number | None = None
    ce_adapted_clean: Number | None = None
    kl_adapted_clean: Number | None = None
    top1_adapted_clean: Number | None = None
    ce_zero: Number | None = None
    kl_zero: Number | None = None
    top1_zero: Number | None = None
    ce_gap: Number | None = None
    ce_gain: Number | None = None
    gap_closed: Number | None = None
    loss_recovered_sae: Number | None = None
    loss_recovered_adapted: Number | None = None
    n_tokens_evaluated: Number | None = None
    ci95: dict[str, Interval] = {}

    def of(self, variant: Variant) -> VariantLoss | None:
        """The losses of one variant; None where it was not measured."""
        ce, kl, top1, recovered = (
            getattr(self, f"{figure}_{variant}", None) for figure in ("ce", "kl", "top1", "loss_recovered")
        )
        return None if ce is None else VariantLoss(ce, kl, top1, recovered)

    def interval(self, name: str) -> Sequence[float] | None:
        """A figure's 95 % interval, (lower, upper); None where it has none.

        One without width is of rows that cannot differ, mostly of a single row, and tells of no certainty.
        """
        found = self.ci95.get(name)
        return None if found is None or found[0] == found[1] else found

    def estimate(self, name: FigureName) -> Estimate | float | None:
        """A figure with its interval where it has one; None where it was not measured."""
        return with_interval(getattr(self, name), self.interval(name))

    def estimates(self, variant: Variant) -> list[Estimate | float | None]:
        """A variant's cross entropy, KL, top-1 agreement and loss recovered, each with its interval."""
        found = self.of(variant) or ()
        names = [f"{figure}_{variant}" for figure in ("ce", "kl", "top1", "loss_recovered")]
        return [with_interval(value, self.interval(name)) for name, value in zip(names, found, strict=False)]


def with_interval(value: float | None, interval: Sequence[float] | None) -> Estimate | float | None:
    """A figure as tables take it; None where it was not measured."""
    return value if value is None or interval is None else Estimate(value=value, low=interval[0], high=interval[1])


class LossResult(LossFigures):
    """What ``evaluate_loss`` finds.

    Args:
        saes: by hookpoint, the SAEs as they came; saes_adapted: as trained, in the adapted model.
    """

    n_tokens_evaluated: Number
    saes: dict[str, SAEFigures] = {}
    saes_adapted: dict[str, SAEFigures] = {}
    row_starts: RowStarts | None = None
    # of a run, or of the run that is evaluated
    method: str = "lora"
    about: About | None = None
    n_tokens_trained: Number | None = None
    seconds_training: Number | None = None  # unset where several shared their passes
    tokens_per_second: Number | None = None
    n_branches: Number = 1  # that shared them

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, found: Any) -> Any:
        """Of a run no figure is null, as of a sweep's point that diverged."""
        if isinstance(found, dict):
            for name in (*LossFigures.model_fields, "seconds_training", "tokens_per_second"):
                if name in found and found[name] is None:
                    raise misfit(f"{name} is null, expected a number")
        return found

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.seconds_training is not None and self.tokens_per_second is None:
            raise misfit("seconds_training stands without tokens_per_second")
        for arm in (Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN):  # of zeros there may be ce alone
            there = [f"{figure}_{arm}" in self.model_fields_set for figure in ("ce", "kl", "top1")]
            if any(there) and not all(there):
                raise misfit(f"of ce_{arm}, kl_{arm} and top1_{arm} some are missing")
        return self


class HistoryPoint(Record):
    """The student on a few held-out rows, after n_tokens of training."""

    n_tokens: Number
    ce: Number | None = None
    kl: Number | None = None
    gap_closed: Number | None = None


class RunResult(LossResult):
    """What a run's results.json holds: the losses, what they cost, and where.

    Args:
        status: one of ``saelora.reporting.outcome``.
        rows_at_once: that memory had room for, where it was fewer than batch_rows.
        samples: continuations of the same prompts by each variant.
    """

    n_tokens_trained: Number
    status: str | None = None
    history: list[HistoryPoint] = []
    rows_at_once: int | None = None
    samples: list[dict[str, str]] = []


class SAEResult(LossFigures, SAEFigures):
    """What train-sae leaves beside each SAE: its figures, and what it does to the model."""

    row_starts: RowStarts | None = None
    about: About | None = None
    n_tokens_trained: Number
    seconds_training: Number
