"""What --parts replacement found, in plain words."""

from collections.abc import Sequence

from saelora.evals.estimate import Estimate, number, numbers
from saelora.evals.replacement.result import Alone, ReplacementResult, Step
from saelora.evals.variant import Variant

_READS = {
    "cascading": "Cascading (each transcoder reads the replaced stream)",
    "parallel": "Parallel (each reads the original's stream)",
}
_MOST = 5


def lines(result: ReplacementResult) -> list[str]:
    """The whole curve of each mode, then what each MLP costs alone."""
    told = [
        f"The original's cross entropy is {number(result.ce_base['value']):.4f} nats over {result.n_predictions:,} "
        f"predictions; there are transcoders of {_mlps(result.n_transcoders)}."
    ]
    if result.n_taken_out:
        saes = "SAE is" if result.n_taken_out == 1 else f"{result.n_taken_out} SAEs are"
        told[0] += f" The run's {saes} taken out here, with the adapter too."
    for mode, steps in result.curves.items():
        told += [f"{_READS.get(mode, mode)}, {_mlps(step.n_replaced)} replaced: {_step(step)}." for step in steps]
    return [*told, *_alone(result)]


def _step(step: Step) -> str:
    told = _losses(step, Variant.SPLICED)
    if Variant.ADAPTED not in step.ce:
        return told
    return f"{told}; adapted {_losses(step, Variant.ADAPTED)}, {_closed(step.gap_closed)}"


def _losses(step: Step, variant: Variant) -> str:
    ce, kl, top1 = (number(each[variant]["value"]) for each in (step.ce, step.kl, step.top1))
    return f"cross entropy {ce:.4f}, KL {kl:.4f}, top-1 {top1:.1%}"


def _closed(gap_closed: Estimate | None) -> str:
    if gap_closed is None or gap_closed["value"] is None:
        return "where the transcoders cost nothing that could be won back"
    value, low, high = numbers(gap_closed)
    if high < 0:
        return f"which adds {-value:.1%} to the cost ({-high:.1%} to {-low:.1%})"
    if low <= 0:
        return f"what that wins back cannot be told from nothing ({value:.1%} of the cost, {low:.1%} to {high:.1%})"
    return f"which wins back {value:.1%} of the cost ({low:.1%} to {high:.1%})"


def _alone(result: ReplacementResult) -> list[str]:
    if not result.alone:
        return []
    ranked = sorted(result.alone, key=lambda each: number(each.kl["value"]), reverse=True)
    told = [f"Each alone and unadapted, most KL is cost by {_layers(ranked[:_MOST])}"]
    told[0] += f"; least by {_layers(ranked[-1:])}." if len(ranked) > _MOST else "."
    whole = {mode: steps[-1] for mode, steps in result.curves.items() if steps[-1].n_replaced == len(ranked)}
    if whole:
        together = sum(number(each.kl["value"]) for each in ranked)
        modes = ", ".join(f"{number(s.kl[Variant.SPLICED]['value']):.4f} {mode}" for mode, s in whole.items())
        told.append(f"Their KLs alone sum to {together:.4f}; all at once cost {modes}.")
    return told


def _layers(some: Sequence[Alone]) -> str:
    return ", ".join(f"layer {each.layer} ({number(each.kl['value']):.4f})" for each in some)


def _mlps(n: int) -> str:
    return "1 MLP" if n == 1 else f"{n} MLPs"
