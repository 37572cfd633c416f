"""What --parts steering found, in plain words."""

from saelora.evals.estimate import Estimate
from saelora.evals.steering.result import Latent, Steering

_METHODS = {"scale": "Scaling a latent's direction", "add": "Activation addition"}
_TEXTS = {"positives": "on texts in which the latent fires", "negatives": "on texts in which it never does"}


def lines(result: Steering) -> list[str]:
    """The comparison of each method over all latents first, then each latent, then how it was measured."""
    out = [_finding(result, method, side) for side in _TEXTS for method in result.methods]
    out += [line for method in result.methods if (line := _weak(result, method))]
    out += [_normalised(result), *(_latent(result, latent) for latent in result.latents), _how(result)]
    if result.skipped:
        reasons = "; ".join(entry.why for entry in result.skipped[:3])
        more = len(result.skipped) - 3
        out.append(f"Left out: {reasons}{f'; and {more} more' if more > 0 else ''}.")
    return out


def _finding(result: Steering, method: str, side: str) -> str:
    pooled = result.pooled[method]
    found = pooled.positives if side == "positives" else pooled.negatives
    base, adapted = _signed(found.base["value"]), _signed(found.adapted["value"])
    return (
        f"{_METHODS[method]}, {_TEXTS[side]}: {_verdict(found.difference_raw)}. Steering changes their "
        f"log-probability by {base} nats per token in the original and by {adapted} in the adapted model."
    )


def _verdict(difference: Estimate) -> str:
    value, low, high = difference["value"], difference["low"], difference["high"]
    if value is None:
        return "no difference between the models could be measured"
    if low is None or high is None:
        return f"adapted minus original {_signed(value)}, without an interval, since one latent alone tells no spread"
    told = f"adapted minus original {_signed(value)} (90 % interval {_signed(low)} to {_signed(high)})"
    if low > 0:
        return f"the adapted model comes out higher, {told}"
    if high < 0:
        return f"the adapted model comes out lower, {told}"
    return f"no difference between the models can be told, {told}"


def _weak(result: Steering, method: str) -> str | None:
    """A warning where steering does not do what it is meant to in the original model either."""
    n = len(result.latents)
    scores = [[tried.score for tried in latent.methods[method].tuning] for latent in result.latents]
    useless = sum(max((s for s in own if s is not None), default=-1.0) <= 0 for own in scores)
    if not useless:
        return None
    return (
        f"{_METHODS[method]} only does harm for {useless} of {n} latents: on the tuning texts, in the original model, "
        f"no strength that was tried gained the latent's texts more than it lost the others. There it is harm that is "
        f"compared; other strengths, negative ones too, can be given as --steering-{method}."
    )


def _normalised(result: Steering) -> str:
    told = []
    for method in result.methods:
        found = result.pooled[method].positives.difference_normalised
        value = "undefined" if found["value"] is None else _signed(found["value"], 2) + _interval(found, 2)
        told.append(f"{value} for {method}")
    return (
        f"On the paper's normalised scale (each model's un-steered values from 0 to 100) the positives' difference is "
        f"{', '.join(told)}. That scale hangs on two texts a model, the likeliest and the least likely one: where it "
        f"and the raw difference disagree, trust the raw one."
    )


def _latent(result: Steering, latent: Latent) -> str:
    told = []
    for method in result.methods:
        found = latent.methods[method]
        difference = found.positives.difference_raw
        value = "undefined" if difference["value"] is None else _signed(difference["value"]) + _interval(difference)
        told.append(f"{method} at alpha {found.alpha:g}: {value}")
    n = latent.n
    return (
        f"Latent {latent.latent} (fires in {latent.rate:.1%} of passages; {n.positives} positives, "
        f"{n.negatives} negatives): adapted minus original on positives, {'; '.join(told)}."
    )


def _how(result: Steering) -> str:
    bos = "at every token, BOS included" if result.bos else "at every token that is replaced"
    return (
        f"Steered at {result.hookpoint} {bos}, the splice itself taken out of both models. Strengths were chosen on "
        f"tuning texts with the original model alone, and are the same for both; selection, tuning and test texts "
        f"share no text. Intervals over all latents take a latent's mean as one observation, a latent's own a text."
    )


def _interval(found: Estimate, digits: int = 4) -> str:
    low, high = found["low"], found["high"]
    return "" if low is None or high is None else f" (90 % interval {_signed(low, digits)} to {_signed(high, digits)})"


def _signed(value: float | None, digits: int = 4) -> str:
    return "undefined" if value is None else f"{value:+.{digits}f}"
