"""What --parts drift found."""

from dataclasses import dataclass

from saelora.evals.estimate import Estimate
from saelora.evals.trained import Trained
from saelora.evals.variant import Variant
from saelora.records import Number

AWAY = (Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN)  # the variants that are set against the base


@dataclass(frozen=True)
class Layer:
    """How far one layer's output lies from the base's: means over replaced positions, for each variant of AWAY.

    Args:
        layer: its index.
        l2: norm of the difference, in units of the activations.
        relative_l2: that over the norm of the base's output.
        cosine_distance: 1 - cos.
        l2_difference, cosine_difference: adapted minus spliced, paired by row.
    """

    layer: int
    l2: dict[Variant, Estimate]
    relative_l2: dict[Variant, Estimate]
    cosine_distance: dict[Variant, Estimate]
    l2_difference: Estimate
    cosine_difference: Estimate


@dataclass(frozen=True)
class LatentChange:
    """One SAE's latents under the base and under the adapted model, at the same positions of the same text.

    Args:
        identical: bit for bit.
        max_abs_difference: of a latent, in units of activation.
        jaccard: of the sets of latents that are active at a position, mean over positions.
        rate_correlation: Pearson's, over latents, of the share of positions at which each fires.
        l0: active latents per position.
        fvu: fraction of the variance unexplained.
        relative_error, relative_error_q10, relative_error_q90, top_variance, fvu_rest: see saelora.core.spread; older
            versions did not measure them.
        reads_original: it is a transcoder, which reads the original's stream (replacement mode parallel).
    """

    identical: bool
    max_abs_difference: Number
    jaccard: Estimate
    rate_correlation: Estimate
    l0: dict[Variant, Number]
    fvu: dict[Variant, Estimate]
    relative_error: dict[Variant, Number] | None = None
    relative_error_q10: dict[Variant, Number] | None = None
    relative_error_q90: dict[Variant, Number] | None = None
    top_variance: dict[Variant, Number] | None = None
    fvu_rest: dict[Variant, Number] | None = None
    reads_original: bool | None = None


@dataclass(frozen=True)
class Drift:
    """How far the layers run from the original's, and whether the latents fire as before.

    Args:
        n_positions: replaced positions that were measured.
        layers: from the lowest; a layer's output is what the next one gets.
        latents: by hookpoint.
        trained: whose doing it is; older versions knew adapters alone.
    """

    n_positions: int
    layers: list[Layer]
    latents: dict[str, LatentChange]
    trained: Trained = Trained.ADAPTER
