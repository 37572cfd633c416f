"""What --parts tokens found. Losses are in nats; a change is adapted minus spliced, so below 0 where it helps."""

from dataclasses import dataclass

from saelora.evals.estimate import Estimate
from saelora.evals.trained import Trained
from saelora.evals.variant import Variant
from saelora.records import Number


@dataclass(frozen=True)
class Change:
    """The change of a prediction's loss; quantiles by their level, such as "0.95"."""

    mean: Estimate
    quantiles: dict[str, Number]
    mean_helped: Estimate
    mean_hurt: Estimate


@dataclass(frozen=True)
class Cost:
    """What the splice adds to a prediction's loss, spliced minus base."""

    mean: Estimate
    quantiles: dict[str, Number]


@dataclass(frozen=True)
class Histogram:
    """Predictions by the size of their change: ``edges`` [n_bins + 1] in nats, counts [n_bins] and those beyond."""

    edges: list[Number]
    helped: list[int]
    helped_below: int
    helped_above: int
    hurt: list[int]
    hurt_below: int
    hurt_above: int


@dataclass(frozen=True)
class Group:
    """Predictions that have something in common: ``low`` <= x < ``high`` (None: open), n of them.

    Args:
        gap_closed: undefined where the group's gap cannot be told from 0.
    """

    low: Number
    high: Number | None
    label: str
    n: int
    ce_base: Estimate
    ce_sae: Estimate
    ce_adapted: Estimate
    change: Estimate
    gap_closed: Estimate


@dataclass(frozen=True)
class Passage:
    """Tokens of one row, S of them; an entry is None where there is nothing to say: a row's first token.

    Args:
        row, start: where they stand.
        focus: the token that they are shown for, counted from the passage's first.
        counted: whether the prediction of each counts, that is from a position that the SAE replaces.
        ce, kl: of the prediction of each.
        recon_error: squared error of the SAE over the squared norm, at the position that predicts it.
        top: the likeliest tokens in its place, as (id, probability).
    """

    row: int
    start: int
    focus: int | None
    ids: list[int]
    counted: list[bool]
    ce: dict[Variant, list[Number | None]]
    kl: dict[Variant, list[Number | None]]
    recon_error: list[Number | None]
    top: dict[Variant, list[list[tuple[int, Number]] | None]]


@dataclass(frozen=True)
class Extremes:
    """Passages around the predictions that changed most."""

    most_helped: list[Passage]
    most_hurt: list[Passage]


@dataclass(frozen=True)
class Distribution:
    """The losses of all counted predictions.

    Args:
        share_helped, share_hurt: of predictions, between 0 and 1.
        concentration: share of all nats gained that the most helped 1 % ("0.01") and 10 % of predictions hold.
        by_position: by the number of tokens before the predicted one.
        by_frequency: by the predicted token's occurrences per million; empty where these were not counted.
        by_recon_error: by the relative squared error of the SAE at the predicting position.
    """

    n_predictions: int
    share_helped: Estimate
    share_hurt: Estimate
    change: Change
    cost: Cost
    concentration: dict[str, Number | None]
    histogram: Histogram
    by_position: list[Group]
    by_frequency: list[Group]
    by_recon_error: list[Group]


@dataclass(frozen=True, kw_only=True)
class Tokens(Distribution):
    """The losses token by token, and the text that they are of.

    Args:
        trained: whose doing the change is; older versions knew adapters alone.
        frequency_counted_on: the text, in words.
        recon_error_of: hookpoint of the SAE.
        vocab: the text of every token id that passages use.
        text: whole rows.
    """

    trained: Trained = Trained.ADAPTER
    frequency_counted_on: str
    recon_error_of: str
    vocab: dict[str, str]
    passages: Extremes
    text: list[Passage]
