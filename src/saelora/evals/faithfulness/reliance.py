"""Whether an adapted model reads its SAE or goes round it, by a stated rule on what was measured."""

from saelora.evals.estimate import Estimate, above, below, number, numbers
from saelora.evals.faithfulness.result import Verdict

READS_ABOVE, ROUND_BELOW = 0.8, 0.5
PATH_SHARE = 0.5


def classify_reliance(
    reliance: Estimate, top: Estimate, gain: Estimate, excess: Estimate | None
) -> tuple[Verdict, str]:
    """The verdict on how an adapted model depends on its SAE, and the numbers that it rests on, in words.

    Args:
        reliance: ratio of the rises under shuffled latents, adapted over spliced.
        top: that under ablation of the top latents, over all their numbers.
        gain: what the adapter won, in nats.
        excess: what splicing the exempt positions after a row's first costs the adapted model more than the spliced
            one, in nats; None where there are none.

    The measure is the reliance under shuffled latents, because it removes all that latents say about their position
    and leaves each as active as it was, so that neither model sees activations of another size.

    - reads_sae: the 95 % interval lies above READS_ABOVE, 0.8. An adapter may well have learned to trust latents
      a little less where they are noise, which lowers the ratio somewhat though nothing flows elsewhere; so 1 is not
      asked for.
    - bypasses_sae: the interval lies below ROUND_BELOW, 0.5: most of what the spliced model takes from its
      latents, the adapted one has from elsewhere or does without.
    - unclear: anything else; or the ratio of the rises under ablation of the top latents lies wholly on the other
      side of the threshold; or latents are read, but splicing exempt positions that can have seen text (those after a
      row's first) costs the adapted model more than the spliced one, by over PATH_SHARE, 0.5, of the adapter's gain.
    """
    if reliance["value"] is None:
        return (
            Verdict.UNCLEAR,
            "mixing latents up between positions costs the spliced model nothing that can be told from 0",
        )
    why = (
        f"mixing latents up between positions costs the adapted model {_times(reliance)} what it costs the spliced one"
    )
    if top["value"] is not None:
        why += f"; ablating the top latents, {_times(top)}"
    if above(reliance, READS_ABOVE):
        if below(top, READS_ABOVE):
            return Verdict.UNCLEAR, f"{why}: the two do not agree"
        if path := _path(gain, excess):
            return Verdict.UNCLEAR, f"{why}; but {path}"
        return Verdict.READS_SAE, why
    if below(reliance, ROUND_BELOW):
        if above(top, ROUND_BELOW):
            return Verdict.UNCLEAR, f"{why}: the two do not agree"
        return Verdict.BYPASSES_SAE, why
    return (
        Verdict.UNCLEAR,
        f"{why} (an interval above {READS_ABOVE} would mean reading, one below {ROUND_BELOW} going round)",
    )


def _path(gain: Estimate, excess: Estimate | None) -> str | None:
    """What tells that the adapter's gain hangs on exempt positions that can have seen text, if anything does."""
    won = number(gain["value"])
    if excess is None or won <= 0 or not above(excess, PATH_SHARE * won):
        return None
    return (
        f"splicing the exempt positions after a row's first costs the adapted model {number(excess['value']):.3f} "
        f"nats more than the spliced one, of {won:.3f} that the adapter won"
    )


def _times(estimate: Estimate) -> str:
    return "{:.2f} times ({:.2f} to {:.2f})".format(*numbers(estimate))
