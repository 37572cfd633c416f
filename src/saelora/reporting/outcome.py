"""Whether a run ended better than it began, by a stated rule on its figures."""

import math
from typing import Any

DONE, WORSE, DIVERGED = "done", "worse", "diverged"
FAR = 1.0  # nats per token


def outcome(results: dict[str, Any]) -> str:
    """What became of the spliced model's cross entropy by training.

    - "diverged": it is no number, or by more above the one before than the SAE costs, and by more than FAR, 1 nat.
    - "worse": it is above the one before, and the 95 % interval or the KL to the original (``kl_*``) says so too.
    - "done": anything else.
    """
    if "ce_adapted" not in results or results.get("ce_sae") is None:
        return DONE
    before, after = results["ce_sae"], results["ce_adapted"]
    if after is None or not math.isfinite(after):
        return DIVERGED
    if after - before > max(FAR, results.get("ce_gap", 0.0)):
        return DIVERGED
    gain = before - after
    if results.get("ci95", {}).get("ce_gain", (gain, gain))[1] < 0:
        return WORSE
    kl_before, kl_after = results.get("kl_sae"), results.get("kl_adapted")
    further = kl_before is not None and kl_after is not None and kl_after > kl_before
    return WORSE if further and gain <= 0 else DONE
