"""What --parts replacement found."""

from dataclasses import dataclass

from saelora.evals.estimate import Estimate
from saelora.evals.variant import Variant


@dataclass(frozen=True)
class Step:
    """The model with some of its MLPs replaced; each of a curve's sets of layers holds the smaller ones.

    Args:
        layers: whose MLPs are replaced, ``n_replaced`` of them.
        ce, kl: in nats per predicted token, spliced and, where there is an adapter, adapted.  top1: share of
            predictions whose likeliest token is the original's.
        gap_closed: what part of the rise in cross entropy the adapter wins back; None without one, undefined where the
            spliced model's is not above the original's.
    """

    n_replaced: int
    layers: list[int]
    ce: dict[Variant, Estimate]
    kl: dict[Variant, Estimate]
    top1: dict[Variant, Estimate]
    gap_closed: Estimate | None = None


@dataclass(frozen=True)
class Alone:
    """The model with one MLP replaced and no adapter: rise of cross entropy, KL (nats), top-1 agreement."""

    layer: int
    rise: Estimate
    kl: Estimate
    top1: Estimate


@dataclass(frozen=True)
class ReplacementResult:
    """What a replacement model costs by the number of MLPs that are replaced.

    Args:
        n_predictions: counted ones, the same for all figures; intervals are paired.
        ce_base: the original's cross entropy.
        n_transcoders: that there are.
        curves: by mode, from few replaced MLPs to many.
        alone: by layer, from the lowest; empty where it was not asked for.
        n_taken_out: SAEs that sit in the model otherwise, and in none of these.
    """

    n_predictions: int
    ce_base: Estimate
    n_transcoders: int
    curves: dict[str, list[Step]]
    alone: list[Alone]
    n_taken_out: int = 0
