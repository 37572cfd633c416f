"""Whether an adapted model reads its SAE or goes round it, by a stated rule on what was measured."""

from typing import Any

from saelora.evals.intervals import Estimate

READS_ABOVE, ROUND_BELOW = 0.8, 0.5
PATH_SHARE = 0.5
READS, ROUND, UNCLEAR = "reads its SAE", "goes round its SAE", "unclear"


def judge(found: dict[str, Any]) -> tuple[str, str]:
    """The verdict on a result of ``faithfulness``, and the numbers that it rests on.

    The measure is the reliance under shuffled latents, because it removes all that latents say about their position
    and leaves each as active as it was, so that neither arm sees activations of another size.

    - "reads its SAE": the 95 % interval lies above READS_ABOVE, 0.8. An adapter may well have learned to trust latents
      a little less where they are noise, which lowers the ratio somewhat though nothing flows elsewhere; so 1 is not
      asked for.
    - "goes round its SAE": the interval lies below ROUND_BELOW, 0.5: most of what the spliced model takes from its
      latents, the adapted one has from elsewhere or does without.
    - "unclear": anything else; or the ratio of the rises under ablation of the top latents lies wholly on the other
      side of the threshold; or latents are read, but splicing exempt positions that can have seen text (those after a
      row's first) costs the adapted model more than the spliced one, by over PATH_SHARE, 0.5, of the adapter's gain.
    """
    reliance, top = found["shuffled"]["reliance"], found["ablation"]["top_pooled"]
    if reliance["value"] is None:
        return UNCLEAR, "mixing latents up between positions costs the spliced model nothing that can be told from 0"
    why = (
        f"mixing latents up between positions costs the adapted model {_times(reliance)} what it costs the spliced one"
    )
    if top["value"] is not None:
        why += f"; ablating the top latents, {_times(top)}"
    if _above(reliance, READS_ABOVE):
        if _below(top, READS_ABOVE):
            return UNCLEAR, f"{why}: the two do not agree"
        if path := _path(found):
            return UNCLEAR, f"{why}; but {path}"
        return READS, why
    if _below(reliance, ROUND_BELOW):
        return (UNCLEAR, f"{why}: the two do not agree") if _above(top, ROUND_BELOW) else (ROUND, why)
    return UNCLEAR, f"{why} (an interval above {READS_ABOVE} would mean reading, one below {ROUND_BELOW} going round)"


def _path(found: dict[str, Any]) -> str | None:
    """What tells that the adapter's gain hangs on exempt positions that can have seen text, if anything does."""
    spliced, gain = found["exempt"]["after_first"], found["gain"]["value"]
    if spliced is None or gain <= 0 or not _above(spliced["excess"], PATH_SHARE * gain):
        return None
    return (
        f"splicing the exempt positions after a row's first costs the adapted model {spliced['excess']['value']:.3f} "
        f"nats more than the spliced one, of {gain:.3f} that the adapter won"
    )


def _above(estimate: Estimate, bound: float) -> bool:
    return estimate["low"] is not None and estimate["low"] > bound


def _below(estimate: Estimate, bound: float) -> bool:
    return estimate["high"] is not None and estimate["high"] < bound


def _times(estimate: Estimate) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return f"{value:.2f} times ({low:.2f} to {high:.2f})"
