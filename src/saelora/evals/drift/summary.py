"""What --parts drift found, in plain words."""

from typing import Any

from saelora.evals.trained import ADAPTER, TRAINED_SAE, trained

Layer = dict[str, Any]


def lines(result: dict[str, Any]) -> list[str]:
    """Distances of the layers first, then what the latents see."""
    layers, who = result["layers"], trained(result)
    return [
        *_nearer(layers, result["n_positions"], who),
        *_last(layers[-1], who),
        *_untouched(layers),
        *(_latents(hookpoint, found, who) for hookpoint, found in result["latents"].items()),
    ]


def _nearer(layers: list[Layer], n_positions: int, who: str) -> list[str]:
    """At how many layers the adaptation brings the spliced model's output nearer to the base's."""
    touched = [each for each in layers if each["l2"]["sae"]["value"] or each["l2"]["adapted"]["value"]]
    if not touched:
        return [f"No layer's output differs from the clean base at any of {n_positions:,} replaced positions."]
    nearer = [each["layer"] for each in touched if each["l2_difference"]["high"] < 0]
    farther = [each["layer"] for each in touched if each["l2_difference"]["low"] > 0]
    same = [each["layer"] for each in touched if each["l2_difference"]["low"] == each["l2_difference"]["high"] == 0]
    unclear = len(touched) - len(nearer) - len(farther) - len(same)
    kind = "adapter" if who == ADAPTER else "training"
    told = f"Of the {len(touched)} layers whose output splice or {kind} change, {who} brings {len(nearer)} "
    told += f"nearer to the clean base in L2 distance{_list(nearer)}, moves {len(farther)} farther off{_list(farther)}"
    told += f", leaves {len(same)} exactly as the splice has {'it' if len(same) == 1 else 'them'}{_list(same)}"
    told += f"; for {unclear} the data cannot tell" if unclear else ""
    return [f"{told} ({n_positions:,} replaced positions)."]


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


def _last(layer: Layer, who: str) -> list[str]:
    sae, adapted, clean = (layer["relative_l2"][arm]["value"] for arm in ("sae", "adapted", "adapted_clean"))
    l2, cosine = layer["l2_difference"], layer["cosine_difference"]
    return [
        f"At the last layer ({layer['layer']}) the output lies {sae:.1%} of its norm from the base's when spliced, "
        f"{adapted:.1%} when adapted too: L2 changes by {_number(l2)}, cosine distance by {_number(cosine)}.",
        "With the SAE taken out, the model is the original: no adapter was trained."
        if who == TRAINED_SAE
        else f"With the SAE taken out, the adapter alone moves that output by {clean:.1%} of its norm.",
    ]


def _untouched(layers: list[Layer]) -> list[str]:
    same = [each["layer"] for each in layers if not any(e["value"] for e in each["l2"].values())]
    if not same:
        return []
    number = "1 layer" if len(same) == 1 else f"{len(same)} layers"
    return [f"Unchanged bit for bit in every variant: the output of {number}{_list(same)}."]


def _latents(hookpoint: str, found: dict[str, Any], who: str) -> str:
    if found["identical"]:
        errors = found.get("relative_error")
        robust = "" if errors is None else f", a token's median error over its norm (squared) {errors['base']:.3f}"
        return (
            f"The SAE at {hookpoint} sees what it saw in the clean base: its latents are identical bit for bit "
            f"(L0 {found['l0']['base']:.1f}, FVU {found['fvu']['base']['value']:.3f}{robust}), as they must be where "
            f"neither an adapter nor another SAE lies below it."
        )
    rates, fvu, l0, robust = found["rate_correlation"], found["fvu"], found["l0"], ""
    if errors := found.get("relative_error"):
        robust = f", a token's median error over its norm (squared) {errors['base']:.3f} → {errors['adapted']:.3f}"
    correlated = "" if rates["value"] is None else f", their firing rates correlate by {_plain(rates)}"
    why = (
        "sees something else than in the clean base (an adapter or another SAE lies below it)"
        if who == ADAPTER
        else "was trained, and is set against what it was in the clean base"
    )
    return (
        f"The SAE at {hookpoint} {why}: the sets of active latents overlap by {_plain(found['jaccard'])} "
        f"(Jaccard){correlated}; L0 {l0['base']:.1f} → {l0['adapted']:.1f}, FVU {fvu['base']['value']:.3f} → "
        f"{fvu['adapted']['value']:.3f}{robust}."
    )


def _plain(e: dict[str, Any]) -> str:
    return f"{e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})"


def _number(e: dict[str, Any]) -> str:
    return f"{e['value']:+.3g} ({e['low']:+.3g} to {e['high']:+.3g})"
