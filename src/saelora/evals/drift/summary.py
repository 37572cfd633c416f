"""What --parts drift found, in plain words."""

from saelora.evals.drift.result import AWAY, Drift, LatentChange, Layer
from saelora.evals.estimate import Estimate, above, below, number, numbers
from saelora.evals.trained import Trained
from saelora.evals.variant import Variant


def lines(result: Drift) -> list[str]:
    """Distances of the layers first, then what the latents see."""
    layers = result.layers
    return [
        *_nearer(result),
        *_last(layers[-1], result.trained),
        *_untouched(layers),
        *(_latents(hookpoint, found, result.trained) for hookpoint, found in result.latents.items()),
    ]


def _nearer(result: Drift) -> list[str]:
    """At how many layers the adaptation brings the spliced model's output nearer to the base's."""
    who, positions = result.trained.words, f"{result.n_positions:,} replaced positions"
    touched = [e for e in result.layers if e.l2[Variant.SPLICED]["value"] or e.l2[Variant.ADAPTED]["value"]]
    if not touched:
        return [f"No layer's output differs from the clean base at any of {positions}."]
    nearer = [each.layer for each in touched if below(each.l2_difference, 0)]
    farther = [each.layer for each in touched if above(each.l2_difference, 0)]
    same = [each.layer for each in touched if each.l2_difference["low"] == each.l2_difference["high"] == 0]
    unclear = len(touched) - len(nearer) - len(farther) - len(same)
    kind = "adapter" if result.trained is Trained.ADAPTER else "training"
    told = f"Of the {len(touched)} layers whose output splice or {kind} change, {who} brings {len(nearer)} "
    told += f"nearer to the clean base in L2 distance{_list(nearer)}, moves {len(farther)} farther off{_list(farther)}"
    told += f", leaves {len(same)} exactly as the splice has {'it' if len(same) == 1 else 'them'}{_list(same)}"
    told += f"; for {unclear} the data cannot tell" if unclear else ""
    return [f"{told} ({positions})."]


def _list(layers: list[int]) -> str:
    """Layers as ranges, in brackets."""
    if not layers:
        return ""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return f" ({', '.join(str(low) if low == high else f'{low}–{high}' for low, high in ranges)})"


def _last(layer: Layer, who: Trained) -> list[str]:
    spliced, adapted, clean = (number(layer.relative_l2[variant]["value"]) for variant in AWAY)
    l2, cosine = layer.l2_difference, layer.cosine_difference
    return [
        f"At the last layer ({layer.layer}) the output lies {spliced:.1%} of its norm from the base's when spliced, "
        f"{adapted:.1%} when adapted too: L2 changes by {_number(l2)}, cosine distance by {_number(cosine)}.",
        "With the splice taken out, the model is the original: no adapter was trained."
        if who is Trained.SAE
        else f"With the splice taken out, the adapter alone moves that output by {clean:.1%} of its norm.",
    ]


def _untouched(layers: list[Layer]) -> list[str]:
    same = [each.layer for each in layers if not any(e["value"] for e in each.l2.values())]
    if not same:
        return []
    number = "1 layer" if len(same) == 1 else f"{len(same)} layers"
    return [f"Unchanged bit for bit in every variant: the output of {number}{_list(same)}."]


def _latents(hookpoint: str, found: LatentChange, who: Trained) -> str:
    errors, base, adapted = found.relative_error, Variant.BASE, Variant.ADAPTED
    fvu = {variant: number(estimate["value"]) for variant, estimate in found.fvu.items()}
    robust = "" if errors is None else f", a token's median error over its norm (squared) {errors[base]:.3f}"
    before = f"FVU {fvu[base]:.3f}{robust}"
    both = f"FVU {fvu[base]:.3f} → {fvu[adapted]:.3f}{robust}" + ("" if errors is None else f" → {errors[adapted]:.3f}")
    if found.identical:
        must = "as they must be where neither an adapter nor another splice lies below"
        if found.reads_original:
            must = "since they read the original's stream (replacement mode parallel)"
        told = before if fvu[adapted] == fvu[base] else both  # a decoder may have been trained
        return (
            f"The latents at {hookpoint} see what they saw in the clean base: they are identical bit for bit "
            f"(L0 {found.l0[base]:.1f}, {told}), {must}."
        )
    rates, l0 = found.rate_correlation, found.l0
    correlated = "" if rates["value"] is None else f", their firing rates correlate by {_plain(rates)}"
    return (
        f"The latents at {hookpoint} {_why(found, who)}: the sets of active latents overlap by "
        f"{_plain(found.jaccard)} (Jaccard){correlated}; L0 {l0[base]:.1f} → {l0[adapted]:.1f}, {both}."
    )


def _why(found: LatentChange, who: Trained) -> str:
    """Why latents are not what they were in the clean base; of what was trained, the result does not say which part."""
    if found.reads_original:
        if who is Trained.ADAPTER:
            return "read the original's stream (replacement mode parallel), which gave other bits"
        return "were trained, and read the original's stream (replacement mode parallel)"
    if who is Trained.ADAPTER:
        return "see something else than in the clean base (an adapter or another splice lies below)"
    return "are not what they were in the clean base (they were trained, or an adapter or another splice lies below)"


def _plain(e: Estimate) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*numbers(e))


def _number(e: Estimate) -> str:
    return "{:+.3g} ({:+.3g} to {:+.3g})".format(*numbers(e))
