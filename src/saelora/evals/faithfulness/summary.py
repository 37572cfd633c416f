"""What --parts faithfulness found, in plain words."""

from collections.abc import Callable, Iterator

from saelora.evals.estimate import Estimate, above, below, number, numbers
from saelora.evals.faithfulness.result import (
    Ablation,
    Exempt,
    ExemptSpliced,
    Faithfulness,
    OtherSAE,
    Reliance,
    Step,
    TakenOut,
    Verdict,
)
from saelora.evals.variant import Variant
from saelora.reporting.format import nats

_FINDING = {
    Verdict.READS_SAE: "The adapted model reads its SAE",
    Verdict.BYPASSES_SAE: "The adapted model goes round its SAE: its predictions say little about the SAE's latents",
    Verdict.UNCLEAR: "Whether the adapted model reads its SAE or goes round it cannot be told",
}


def lines(result: Faithfulness) -> list[str]:
    """The verdict first, then what each measurement says."""
    return [
        f"{_FINDING[result.verdict]} ({result.why}).",
        *_reliance(result),
        *_ablation(result.ablation),
        _taken_out(result.sae_taken_out),
        *_exempt(result.exempt),
        *_other(result.other_sae),
        f"Measured on {result.n_predictions:,} held-out predictions; intervals are 95 %, by bootstrap over rows.",
    ]


def _reliance(result: Faithfulness) -> Iterator[str]:
    for found, what in (
        (result.shuffled, "With each position given another position's latents"),
        (result.zeroed, "With zeros instead of the reconstruction"),
    ):
        yield f"{what}, cross entropy rises by {_two(found)}{_ratio(found.reliance)}."


def _ablation(found: Ablation) -> Iterator[str]:
    if not found.top:
        yield f"Too few latents fire on this text ({found.n_alive}) to ablate some of them."
        return
    for most, name in ((found.top[-1], "most active"), (found.random[-1], "random")):
        which = f"{most.k} {name} latents" if most.k > 1 else f"one {name} latent"
        yield (
            f"Without {which} ({most.share:.1%} of all activation; {found.n_predictions:,} predictions) it rises "
            f"by {_two(most)}{_ratio(most.ratio)}."
        )


def _taken_out(found: TakenOut) -> str:
    harm, value = found.harm, number(found.harm["value"])
    if above(harm, 0):
        told = f"makes it {nats(value)} nats worse than the original ({_interval(harm, nats)})"
    elif below(harm, 0):
        told = f"leaves it {nats(-value)} nats better than the original ({_interval(harm, nats)})"
    else:
        told = f"leaves it as good as the original, as far as can be told ({_interval(harm, nats)} nats)"
    return f"With the splice taken out, the adapter {told}."


def _exempt(found: Exempt) -> Iterator[str]:
    if not found.n_positions:
        yield "No position of this text is exempt, so nothing can flow through such positions."
        return
    if found.spliced_too:
        yield f"With the exempt positions spliced too, cross entropy rises by {_two(found.spliced_too)}."
    if after := found.after_first:
        yield (
            f"Only those after a row's first can have seen any text (here {found.n_after_first:,}): with these "
            f"spliced too it rises by {_two(after)}, a difference of {nats(number(after.excess['value']))} nats "
            f"({_interval(after.excess, nats)})."
        )
    else:
        yield "All of them begin a row, so they can have seen no text, and none can flow through them."
    if found.attention is None:
        yield f"Attention to exempt positions was not measured: {found.attention_missing}."
        return
    mean = {variant: number(share["value"]) for variant, share in found.attention.mean.items()}
    change, low, high = (100 * points for points in numbers(found.attention.change))
    yield (
        f"Replaced positions pay {mean[Variant.SPLICED]:.1%} of their attention to exempt ones in the spliced model "
        f"and {mean[Variant.ADAPTED]:.1%} in the adapted one (original: {mean[Variant.BASE]:.1%}; change "
        f"{change:+.2f} points, {low:+.2f} to {high:+.2f})."
    )


def _other(found: OtherSAE | None) -> Iterator[str]:
    if found is None:
        return
    name = found.ref or f"another SAE at {found.hookpoint}"
    closed, own = found.gap_closed, found.own_gap_closed
    robust = ""
    if found.relative_error is not None:
        errors = f"{found.relative_error:.3f}, its own {number(found.own_relative_error):.3f}"
        robust = f"; a token's median error over its norm (squared) {errors}"
    told = f"Under {name} (FVU {found.fvu:.3f}, its own {found.own_fvu:.3f}{robust}) the adapter"
    if closed["value"] is None:
        yield f"{told} has no gap to close: that SAE has no measurable cost."
        return
    own_share = "" if own["value"] is None else f"; under its own it closes {own['value']:.1%}"
    verb = "closes" if closed["value"] >= 0 else "makes it worse: gap closed"
    yield f"{told} {verb} {closed['value']:.1%} of the gap ({_interval(closed, '{:.1%}'.format)}){own_share}."


def _two(found: Reliance | ExemptSpliced | Step) -> str:
    """Both models' rises, in nats."""
    sae, adapted = found.rise_sae, found.rise_adapted
    return (
        f"{nats(number(sae['value']))} nats in the spliced model ({_interval(sae, nats)}) and by "
        f"{nats(number(adapted['value']))} in the adapted one ({_interval(adapted, nats)})"
    )


def _ratio(ratio: Estimate) -> str:
    if ratio["value"] is None:
        return "; no ratio is given, since the spliced model's rise cannot be told from 0"
    return f": a ratio of {ratio['value']:.2f} ({_interval(ratio, '{:.2f}'.format)})"


def _interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    _, low, high = numbers(estimate)
    return f"{form(low)} to {form(high)}"
