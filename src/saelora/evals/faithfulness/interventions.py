"""Does an adapted model read its SAE, or go round it?

An adapter could win cross entropy back by taking less from the SAE and more from what the SAE does not touch: the
residual stream beside an SAE at a sublayer's output, or the exempt positions, which attention can read. Then the
adapted model says little about the SAE's latents. So the same harm is done to the latents in the spliced model and in
the adapted one, and what it costs each is compared: ``rise`` is the cross entropy under the intervention minus that of
the same model without it, in nats per counted prediction. The ratio of the two rises, adapted / spliced, is 1 where the
adapted model depends on the latents as the spliced one does, and 0 where it does not depend on them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelora.core import lora
from saelora.core.splice import SAE, TokenMask, ZeroAblation, splice
from saelora.core.spread import FIGURES
from saelora.core.students import Student
from saelora.errors import InputError
from saelora.evals.estimate import Estimate
from saelora.evals.faithfulness.ablation import (
    Ablated,
    CrossEntropies,
    LatentMass,
    Shuffle,
    Shuffled,
    cross_entropies,
    random_order,
    top_latents,
)
from saelora.evals.faithfulness.attention import NoWeightsError, attention_to_exempt
from saelora.evals.faithfulness.reliance import classify_reliance
from saelora.evals.faithfulness.result import (
    Ablation,
    Attention,
    Exempt,
    ExemptSpliced,
    Faithfulness,
    OtherSAE,
    Reliance,
    Rises,
    Step,
    TakenOut,
)
from saelora.evals.intervals import UNDEFINED
from saelora.evals.loss_sums import SAESums, check_any
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import Variant
from saelora.models.hookpoints import Hookpoint

KS = (1, 4, 16, 64, 256)
PAIR = (Variant.SPLICED, Variant.ADAPTED)
Saes = Mapping[Hookpoint, SAE]


def faithfulness(
    subject: SplicedModel,
    rows: Tensor,
    *,
    other: tuple[Hookpoint, SAE] | None = None,
    draws: int = 3,
    ablation_rows: int | None = None,
    attention_rows: int = 16,
    batch_rows: int = 2,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> Faithfulness:
    """Measure how an adapted model depends on its SAEs, on packed rows [n_rows, context].

    Several SAEs are ablated, shuffled and zeroed all at once, each by its own latents.

    Args:
        other: an SAE to put in the place of the one at the same hookpoint.
        draws: of random latents; their rises are pooled.
        ablation_rows, attention_rows: how many evenly spaced rows these two use; None is all.
        batch_rows: also the rows among which latents are shuffled.
        seed: of shuffles and random latents, which are the same for both models.
        progress: told of tokens, ``n_tokens_run`` in all.

    Returns:
        Estimates with 95 % intervals by bootstrap over rows, paired; the verdict is that of ``classify_reliance``.

    Raises:
        InputError: the model has no adapter, or no position of the rows is replaced.
    """
    if lora.adapter_name(subject.model) is None:
        raise InputError("faithfulness is asked of an adapted model, this one has no adapter: give one with --adapter")
    check_any(subject.token_mask(rows)[:, :-1])
    case = _Case(subject, batch_rows, progress)
    generator = torch.Generator().manual_seed(seed)
    main, seen = _main(case, rows, other, generator)
    picks = spaced(len(rows), ablation_rows)
    ablation = _ablation(case, rows[picks], main.at(picks), seen.mass, draws, generator)
    attention = _attention(case, rows[spaced(len(rows), attention_rows)])
    shuffled, exempt = _relied(main, "shuffled"), _exempt(main, subject.token_mask, torch.cat(seen.spared), *attention)
    gain = main.mean(main.row_sums(Variant.SPLICED) - main.row_sums(Variant.ADAPTED))
    excess = None if exempt.after_first is None else exempt.after_first.excess
    verdict, why = classify_reliance(shuffled.reliance, ablation.top_pooled, gain, excess)
    return Faithfulness(
        n_predictions=int(sum(main.n)),
        ce={variant: main.mean(main.row_sums(variant)) for variant in PAIR},
        gain=gain,
        sae_taken_out=_taken_out(main),
        exempt=exempt,
        ablation=ablation,
        shuffled=shuffled,
        zeroed=_relied(main, "zeroed"),
        other_sae=_other(main, other[0], seen) if other else None,
        verdict=verdict,
        why=why,
    )


@dataclass(frozen=True)
class _Case:
    """What every pass through the rows has in common."""

    subject: SplicedModel
    batch_rows: int
    progress: Callable[[int], None]

    def run(self, rows: Tensor, variants: Mapping[str, Student], **more: Any) -> CrossEntropies:
        return cross_entropies(self.subject, variants, rows, batch_rows=self.batch_rows, progress=self.progress, **more)

    def both(self, name: str, saes: Saes, mask: TokenMask, stack: ExitStack) -> dict[str, Student]:
        """The spliced and the adapted model under an intervention, its splice open as long as ``stack``."""
        replacement = self.subject.spliced.replacement
        opened = stack.enter_context(splice(self.subject.model, saes, mask, replacement=replacement))
        return {f"{name}.{variant}": Student(opened, self.subject.student(variant).adapter) for variant in PAIR}


@dataclass
class _Seen:
    """What the SAEs did in the spliced model.

    Args:
        spared: of each batch [batch, seq], the positions that some SAE left alone, for their tokens or their norms.
    """

    mass: LatentMass
    own: SAESums
    other: SAESums
    spared: list[Tensor] = field(default_factory=list)

    def watch(self, *event: Any) -> None:
        """The observer of the adapter's own SAEs."""
        self.mass(*event)
        self.own(*event)
        self.spared[-1] |= ~event[-1].to(self.spared[-1].device)


class _AllButFirst(TokenMask):
    """The positions of a policy, and every spared one but a row's first, which cannot have seen any text."""

    def at(self, input_ids: Tensor, position_BS: Tensor) -> Tensor:
        return super().at(input_ids, position_BS) | (position_BS != 0)

    def replaced(self, hookpoint: Hookpoint, x: Tensor, mask: Tensor) -> Tensor:
        """Massive ones too, but for a row's first; rows are packed, so that it stands at 0."""
        return torch.cat([super().replaced(hookpoint, x, mask)[:, :1], mask[:, 1:]], 1)


def spaced(n_rows: int, n: int | None) -> list[int]:
    """Indices of n evenly spaced rows; of all where there are fewer."""
    n = n_rows if n is None else min(max(n, 1), n_rows)
    return [n_rows * i // n for i in range(n)]


def n_tokens_run(rows: Tensor, ablation_rows: int | None = None, attention_rows: int = 16) -> int:
    """How many tokens ``faithfulness`` tells ``progress`` of: those of each of its passes through the rows."""
    n = len(rows) + len(spaced(len(rows), ablation_rows)) + len(spaced(len(rows), attention_rows))
    return n * rows.shape[1]


def _main(
    case: _Case, rows: Tensor, other: tuple[Hookpoint, SAE] | None, generator: torch.Generator
) -> tuple[CrossEntropies, _Seen]:
    """Every variant and intervention but the ablations, in one pass through the rows."""
    saes, policy, shuffle = case.subject.spliced.saes, case.subject.token_mask, Shuffle()
    plans: dict[str, tuple[Saes, TokenMask]] = {
        "shuffled": ({h: Shuffled(sae, shuffle) for h, sae in saes.items()}, policy),
        "zeroed": (dict.fromkeys(saes, ZeroAblation()), policy),
    }
    spared_BS, by_norm = ~policy(rows), policy.massive is not None  # the latter are known once the SAEs have run
    if spared_BS.any() or by_norm:
        plans["exempt"] = (saes, TokenMask((), 0, policy.exempt_padding))
    if spared_BS[:, 1:].any() or by_norm:
        plans["after_first"] = (saes, _AllButFirst(**vars(policy)))
    if other:
        plans["other"] = ({**saes, other[0]: other[1]}, policy)
    seen = _Seen(LatentMass(saes), SAESums.of(policy, rows), SAESums.of(policy, rows))
    variants: dict[str, Student] = {v: case.subject.student(v) for v in (Variant.BASE, Variant.ADAPTED_CLEAN, *PAIR)}

    def begin(mask_BS: Tensor) -> None:
        shuffle.draw(mask_BS, generator)
        seen.spared.append(~mask_BS)

    with ExitStack() as stack:
        for name, (put_in, mask) in plans.items():
            variants |= case.both(name, put_in, mask, stack)
        found = case.run(
            rows,
            variants,
            observers={Variant.SPLICED: seen.watch, f"other.{Variant.SPLICED}": seen.other},
            before=begin,
        )
    return found, seen


def _ablation(
    case: _Case, rows: Tensor, whole: CrossEntropies, mass: LatentMass, draws: int, generator: torch.Generator
) -> Ablation:
    """Rises where k latents are set to 0; ``whole`` holds the same rows' cross entropies with all latents."""
    orders = [{h: random_order(mass_S, generator) for h, mass_S in mass.sums.items()} for _ in range(draws)]
    n_alive = min(int((mass_S > 0).sum()) for mass_S in mass.sums.values())
    ks = [k for k in KS if k < n_alive]
    chosen: dict[tuple[str, int], list[dict[Hookpoint, Tensor]]] = {}
    for k in ks:
        chosen["random", k] = [{h: order[:k] for h, order in drawn.items()} for drawn in orders]
        chosen["top", k] = [{h: top_latents(mass_S, k) for h, mass_S in mass.sums.items()}]
    with ExitStack() as stack:
        variants: dict[str, Student] = {}
        for (kind, k), sets in chosen.items():
            for i, latents in enumerate(sets):
                put_in = {h: Ablated(sae, latents[h]) for h, sae in case.subject.spliced.saes.items()}
                variants |= case.both(f"{kind}.{k}.{i}", put_in, case.subject.token_mask, stack)
        found = case.run(rows, variants)
    found.ce.update({variant: whole.ce[variant] for variant in PAIR})
    steps: dict[str, list[Step]] = {}
    pooled: dict[str, Estimate] = {}
    for kind in ("random", "top"):
        names = {k: [f"{kind}.{k}.{i}" for i in range(len(chosen[kind, k]))] for k in ks}
        steps[kind] = [Step(k, _mass_share(chosen[kind, k], mass), **vars(_rises(found, names[k]))) for k in ks]
        pooled[kind] = _rises(found, [name for k in ks for name in names[k]]).ratio if ks else UNDEFINED.copy()
    n = int(sum(found.n))
    return Ablation(n, draws, n_alive, steps["random"], pooled["random"], steps["top"], pooled["top"])


def _mass_share(sets: Sequence[Mapping[Hookpoint, Tensor]], mass: LatentMass) -> float:
    """The chosen latents' part of all activation mass, a mean over draws and SAEs."""
    shares = [
        float(mass.sums[h][picked].sum() / mass.sums[h].sum()) for latents in sets for h, picked in latents.items()
    ]
    return float(np.mean(shares))


def _rises(ce: CrossEntropies, names: Sequence[str]) -> Rises:
    """Mean rises over interventions, in both models, and their ratio."""
    spliced_R, adapted_R = (
        ce.row_sums(*(f"{name}.{variant}" for name in names)) - len(names) * ce.row_sums(variant) for variant in PAIR
    )
    n = len(names)
    return Rises(ce.mean(spliced_R, n), ce.mean(adapted_R, n), ce.share(adapted_R, spliced_R))


def _relied(ce: CrossEntropies, name: str) -> Reliance:
    """Cross entropies and rises under one intervention."""
    rises = _rises(ce, [name])
    spliced, adapted = (ce.mean(ce.row_sums(f"{name}.{variant}")) for variant in PAIR)
    return Reliance(spliced, adapted, rises.rise_sae, rises.rise_adapted, rises.ratio)


def _exempt(
    ce: CrossEntropies, token_mask: TokenMask, spared_RS: Tensor, attention: Attention | None, missing: str | None
) -> Exempt:
    """What splicing spared positions too costs."""
    n, n_after_first = int(spared_RS.sum()), int(spared_RS[:, 1:].sum())
    return Exempt(
        list(token_mask.exempt_ids),
        token_mask.exempt_first,
        n,
        n_after_first,
        _spliced_too(ce, "exempt") if n else None,
        _spliced_too(ce, "after_first") if n_after_first else None,
        attention,
        missing,
    )


def _spliced_too(ce: CrossEntropies, name: str) -> ExemptSpliced:
    """What splicing some of the spared positions costs."""
    found = _relied(ce, name)
    plain, apart = (ce.row_sums(a) - ce.row_sums(s) for s, a in (PAIR, [f"{name}.{variant}" for variant in PAIR]))
    return ExemptSpliced(found.ce_sae, found.ce_adapted, found.rise_sae, found.rise_adapted, ce.mean(apart - plain))


def _taken_out(ce: CrossEntropies) -> TakenOut:
    base, adapted = ce.row_sums(Variant.BASE), ce.row_sums(Variant.ADAPTED_CLEAN)
    return TakenOut(ce.mean(base), ce.mean(adapted), ce.mean(adapted - base))


def _attention(case: _Case, rows: Tensor) -> tuple[Attention | None, str | None]:
    """Attention to exempt positions, or why it was not measured."""
    policy = case.subject.token_mask
    if policy(rows).all():
        return None, "no position is exempt" if policy.massive is None else "no position is exempt by its token"
    try:
        return attention_to_exempt(case.subject, rows, progress=case.progress), None
    except NoWeightsError as error:
        return None, str(error)


def _other(ce: CrossEntropies, hookpoint: Hookpoint, seen: _Seen) -> OtherSAE:
    """Figures under another SAE, beside those under the adapter's own."""
    base, sae, adapted = (ce.row_sums(variant) for variant in (Variant.BASE, *PAIR))
    other_sae, other_adapted = (ce.row_sums(f"other.{variant}") for variant in PAIR)
    others, own = (sums.compute()[str(hookpoint)] for sums in (seen.other, seen.own))
    figures: dict[str, Any] = {name: getattr(others, name) for name in FIGURES}
    figures |= {f"own_{name}": getattr(own, name) for name in FIGURES}
    return OtherSAE(
        hookpoint=str(hookpoint),
        fvu=others.fvu,
        own_fvu=own.fvu,
        **figures,
        ce_sae=ce.mean(other_sae),
        ce_adapted=ce.mean(other_adapted),
        gap_closed=ce.share(other_sae - other_adapted, other_sae - base),
        own_gap_closed=ce.share(sae - adapted, sae - base),
    )
