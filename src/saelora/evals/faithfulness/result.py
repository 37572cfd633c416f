"""What --parts faithfulness found. Cross entropies and rises are in nats per counted prediction."""

from dataclasses import dataclass
from enum import StrEnum

from saelora.evals.estimate import Estimate
from saelora.evals.variant import Variant
from saelora.records import Number


class Verdict(StrEnum):
    """Whether an adapted model reads its SAE, see ``saelora.evals.faithfulness.reliance``."""

    READS_SAE = "reads_sae"
    BYPASSES_SAE = "bypasses_sae"
    UNCLEAR = "unclear"

    @classmethod
    def _missing_(cls, value: object) -> "Verdict | None":
        """Results up to version 0.1 hold the words."""
        return {"reads its SAE": cls.READS_SAE, "goes round its SAE": cls.BYPASSES_SAE}.get(str(value))


@dataclass(frozen=True)
class Rises:
    """What an intervention adds to the cross entropy of the spliced and of the adapted model; their ratio."""

    rise_sae: Estimate
    rise_adapted: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Step:
    """``Rises`` where k latents are set to 0; ``share`` is their part of all activation mass, between 0 and 1."""

    k: int
    share: Number
    rise_sae: Estimate
    rise_adapted: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Ablation:
    """Latents of every SAE set to 0: random ones among those that fire, or those of most activation mass.

    Args:
        draws: of random latents, pooled.
        n_alive: latents that fire, in the SAE of the fewest.
        random_pooled, top_pooled: ratios of the rises over all k.
    """

    n_predictions: int
    draws: int
    n_alive: int
    random: list[Step]
    random_pooled: Estimate
    top: list[Step]
    top_pooled: Estimate


@dataclass(frozen=True)
class Intervention:
    """Cross entropies under an intervention, and their rises."""

    ce_sae: Estimate
    ce_adapted: Estimate
    rise_sae: Estimate
    rise_adapted: Estimate


@dataclass(frozen=True)
class Reliance(Intervention):
    """An intervention on the latents; ``reliance`` is the ratio of the rises, adapted over spliced."""

    reliance: Estimate


@dataclass(frozen=True)
class ExemptSpliced(Intervention):
    """Exempt positions spliced too; ``excess`` is what that costs the adapted model more than the spliced one."""

    excess: Estimate


@dataclass(frozen=True)
class AttentionLayer:
    """Share of attention, between 0 and 1, that counted positions pay to exempt ones in one layer of each variant."""

    layer: int
    base: Estimate
    sae: Estimate
    adapted: Estimate


@dataclass(frozen=True)
class Attention:
    """Share of attention to exempt positions, a mean over heads and counted positions.

    Args:
        mean: over layers.
        change: adapted minus spliced in that mean, paired by row.
    """

    layers: list[AttentionLayer]
    mean: dict[Variant, Estimate]
    change: Estimate
    n_rows: int


@dataclass(frozen=True)
class Exempt:
    """What the positions that the SAE leaves alone may carry past it.

    Args:
        ids, first: the policy: exempt token ids, and how many positions at a row's start are exempt; older versions
            say whether one is.
        n_positions, n_after_first: those that an SAE leaves alone in the spliced model, for their tokens or as massive,
            and those of them that can have seen text; older results count no massive ones.
        spliced_too, after_first: of all of them, and of those after a row's first; None where there are none.
        attention: to positions that are exempt by their tokens. None where it was not measured; ``attention_missing``
            says why.
    """

    ids: list[int]
    first: int | bool
    n_positions: int
    n_after_first: int
    spliced_too: ExemptSpliced | None
    after_first: ExemptSpliced | None
    attention: Attention | None
    attention_missing: str | None


@dataclass(frozen=True)
class TakenOut:
    """The adapter without the SAE, beside the original; ``harm`` is what it adds to the cross entropy."""

    ce_base: Estimate
    ce_adapted_clean: Estimate
    harm: Estimate


@dataclass(frozen=True, kw_only=True)
class OtherSAE:
    """The adapter under an SAE that it never saw; figures of its ``own_`` one at the same hookpoint beside it.

    Args:
        ref: as it was named.
        fvu, relative_error, ...: see saelora.core.spread; older versions measured fvu alone.
        gap_closed: share of the cross entropy that the SAE costs and the adapter wins back.
    """

    ref: str | None = None
    hookpoint: str
    fvu: Number
    relative_error: Number | None = None
    relative_error_q10: Number | None = None
    relative_error_q90: Number | None = None
    top_variance: Number | None = None
    fvu_rest: Number | None = None
    own_fvu: Number
    own_relative_error: Number | None = None
    own_relative_error_q10: Number | None = None
    own_relative_error_q90: Number | None = None
    own_top_variance: Number | None = None
    own_fvu_rest: Number | None = None
    ce_sae: Estimate
    ce_adapted: Estimate
    gap_closed: Estimate
    own_gap_closed: Estimate


@dataclass(frozen=True)
class Faithfulness:
    """How the adapted model depends on its SAEs.

    Args:
        ce: of the spliced and the adapted model.
        gain: spliced minus adapted.
        shuffled: each counted position gets another's latents.
        zeroed: zeros instead of reconstructions.
        why: the numbers that the verdict rests on, in words.
    """

    n_predictions: int
    ce: dict[Variant, Estimate]
    gain: Estimate
    sae_taken_out: TakenOut
    exempt: Exempt
    ablation: Ablation
    shuffled: Reliance
    zeroed: Reliance
    other_sae: OtherSAE | None
    verdict: Verdict
    why: str
