"""Whether a run ended better than it began, by a stated rule on its figures."""

import math

from saelora.evals.loss_result import LossFigures

DONE, WORSE, DIVERGED = "done", "worse", "diverged"
FAR = 1.0  # nats per token


def outcome(results: LossFigures) -> str:
    """What became of the spliced model's cross entropy by training.

    - "diverged": it is no number, or by more above the one before than the SAE costs, and by more than FAR, 1 nat.
    - "worse": it is above the one before, and the 95 % interval or the KL to the original (``kl_*``) says so too.
    - "done": anything else.
    """
    before, after = results.ce_sae, results.ce_adapted
    if before is None or "ce_adapted" not in results.model_fields_set:
        return DONE
    if after is None or not math.isfinite(after):
        return DIVERGED
    if after - before > max(FAR, results.ce_gap or 0.0):
        return DIVERGED
    gain = before - after
    if (results.interval("ce_gain") or (gain, gain))[1] < 0:
        return WORSE
    further = results.kl_sae is not None and results.kl_adapted is not None and results.kl_adapted > results.kl_sae
    return WORSE if further and gain <= 0 else DONE
