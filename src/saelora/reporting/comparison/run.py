"""One run of a comparison, as its file and the comparison's results.json hold it."""

from typing import Self

from pydantic import model_validator

from saelora.evals.loss_result import MeanFigures
from saelora.identity import About
from saelora.manifest import Environment
from saelora.records import Interval, JsonObject, Number, Record, misfit


class CurvePoint(Record):
    """A run after a share of its tokens: what its training had cost until then, and the held-out losses."""

    share: Number
    n_tokens: Number
    seconds: Number
    model_flops: Number
    ce: Number | None
    kl: Number | None = None


class Start(Record):
    """Where a method began: an SAE from elsewhere, ``ref``, or an SAE run of the comparison, and what that had cost."""

    ref: str | None = None
    name: str | None = None
    run: str | None = None
    share: Number | None = None
    n_tokens: Number | None = None
    seconds: Number | None = None
    model_flops: Number | None = None
    ce: Number | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ref is None:
            for name in ("name", "run", "share", "n_tokens", "seconds", "model_flops"):
                if getattr(self, name) is None:
                    raise misfit(f"lacks {name}")
        return self


class Tried(Record):
    """A learning rate, and the cross entropy that it led to; None where it diverged."""

    lr: Number
    ce: Number | None


# Of several bases, the last one's fields are written first.
class _Losses(Record):
    """A run's losses at its end, in nats per predicted token where nothing else is said.

    Args:
        ce_sae: of the SAE that a method began from; ce_clean: of the adapted model without its SAE.
    """

    ce_base: Number
    ce_sae: Number | None
    ce: Number | None
    ce_clean: Number | None
    kl: Number | None
    top1: Number | None = None
    gap_closed: Number | None


class Final(MeanFigures, _Losses):
    """A run's losses at its end, the figures of the SAE in use, and of its latents' firing before and after."""

    n_positions: Number | None = None
    massive_limit: Number | None = None
    jaccard: Number | None
    rate_correlation: Number | None
    latents_identical: bool | None = None
    n_tokens_evaluated: Number | None = None
    ci95: dict[str, Interval]


class ComparisonRun(Record):
    """What a run is, its curve, its final figures, and what it cost.

    Args:
        kind: sae or method.
        budget: tokens.
        tuning: the learning rates that were tried.
    """

    id: str
    name: str
    kind: str
    method: str | None
    objective: str | None = None
    seed: int
    budget: int
    lr: Number | None
    tuning: list[Tried] | None = None
    start: Start | None
    about: About | None = None
    config: JsonObject = {}
    curve: list[CurvePoint]
    checkpoints: list[CurvePoint] = []
    peak_memory_bytes: Number | None
    final: Final
    environment: Environment | None = None


class ComparisonResult(Record):
    """What a comparison's results.json holds."""

    title: str | None = None
    runs: list[ComparisonRun]
