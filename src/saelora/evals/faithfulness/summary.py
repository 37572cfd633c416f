"""What --parts faithfulness found, in plain words."""

from collections.abc import Iterator
from typing import Any

_FINDING = {
    "reads its SAE": "The adapted model reads its SAE",
    "goes round its SAE": "The adapted model goes round its SAE: its predictions say little about the SAE's latents",
    "unclear": "Whether the adapted model reads its SAE or goes round it cannot be told",
}


def lines(result: dict[str, Any]) -> list[str]:
    """The verdict first, then what each measurement says."""
    finding = _FINDING[result["verdict"]]
    return [
        f"{finding} ({result['why']}).",
        *_reliance(result),
        *_ablation(result["ablation"]),
        _taken_out(result["sae_taken_out"]),
        *_exempt(result["exempt"]),
        *_other(result["other_sae"]),
        f"Measured on {result['n_predictions']:,} held-out predictions; intervals are 95 %, by bootstrap over rows.",
    ]


def _reliance(result: dict[str, Any]) -> Iterator[str]:
    for key, what in (
        ("shuffled", "With each position given another position's latents"),
        ("zeroed", "With zeros instead of the SAE's reconstruction"),
    ):
        found = result[key]
        told = f"{what}, cross entropy rises by {_two(found)}"
        yield f"{told}{_ratio(found['reliance'])}."


def _ablation(found: dict[str, Any]) -> Iterator[str]:
    if not found["top"]:
        yield f"Too few latents fire on this text ({found['n_alive']}) to ablate some of them."
        return
    for kind, name in (("top", "most active"), ("random", "random")):
        most = found[kind][-1]
        which = f"{most['k']} {name} latents" if most["k"] > 1 else f"one {name} latent"
        yield (
            f"Without {which} ({most['share']:.1%} of all activation; {found['n_predictions']:,} predictions) it rises "
            f"by {_two(most)}{_ratio(most['ratio'])}."
        )


def _taken_out(found: dict[str, Any]) -> str:
    harm = found["harm"]
    if harm["low"] > 0:
        told = f"makes it {_nats(harm['value'])} nats worse than the original ({_interval(harm, _nats)})"
    elif harm["high"] < 0:
        told = f"leaves it {_nats(-harm['value'])} nats better than the original ({_interval(harm, _nats)})"
    else:
        told = f"leaves it as good as the original, as far as can be told ({_interval(harm, _nats)} nats)"
    return f"With the SAE taken out, the adapter {told}."


def _exempt(found: dict[str, Any]) -> Iterator[str]:
    if not found["n_positions"]:
        yield "No position of this text is exempt from the SAE, so nothing can flow through such positions."
        return
    if found["spliced_too"]:
        yield f"With the exempt positions spliced too, cross entropy rises by {_two(found['spliced_too'])}."
    if found["after_first"]:
        after = found["after_first"]
        yield (
            f"Only those after a row's first can have seen any text (here {found['n_after_first']:,}): with these "
            f"spliced too it rises by {_two(after)}, a difference of {_nats(after['excess']['value'])} nats "
            f"({_interval(after['excess'], _nats)})."
        )
    else:
        yield "All of them begin a row, so they can have seen no text, and none can flow through them."
    if found["attention"] is None:
        yield f"Attention to exempt positions was not measured: {found['attention_missing']}."
        return
    mean, change = found["attention"]["mean"], found["attention"]["change"]
    yield (
        f"Replaced positions pay {mean['sae']['value']:.1%} of their attention to exempt ones in the spliced model and "
        f"{mean['adapted']['value']:.1%} in the adapted one (original: {mean['base']['value']:.1%}; change "
        f"{100 * change['value']:+.2f} points, {100 * change['low']:+.2f} to {100 * change['high']:+.2f})."
    )


def _other(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    name = found.get("ref", f"another SAE at {found['hookpoint']}")
    closed, own = found["gap_closed"], found["own_gap_closed"]
    robust = ""
    if found.get("relative_error") is not None:
        errors = f"{found['relative_error']:.3f}, its own {found['own_relative_error']:.3f}"
        robust = f"; a token's median error over its norm (squared) {errors}"
    told = f"Under {name} (FVU {found['fvu']:.3f}, its own {found['own_fvu']:.3f}{robust}) the adapter"
    if closed["value"] is None:
        yield f"{told} has no gap to close: that SAE has no measurable cost."
        return
    own_share = "" if own["value"] is None else f"; under its own it closes {own['value']:.1%}"
    verb = "closes" if closed["value"] >= 0 else "makes it worse: gap closed"
    yield f"{told} {verb} {closed['value']:.1%} of the gap ({_interval(closed, '{:.1%}'.format)}){own_share}."


def _two(found: dict[str, Any]) -> str:
    """Both arms' rises, in nats."""
    sae, adapted = found["rise_sae"], found["rise_adapted"]
    return (
        f"{_nats(sae['value'])} nats in the spliced model ({_interval(sae, _nats)}) and by "
        f"{_nats(adapted['value'])} in the adapted one ({_interval(adapted, _nats)})"
    )


def _ratio(ratio: dict[str, Any]) -> str:
    if ratio["value"] is None:
        return "; no ratio is given, since the spliced model's rise cannot be told from 0"
    return f": a ratio of {ratio['value']:.2f} ({_interval(ratio, '{:.2f}'.format)})"


def _interval(estimate: dict[str, Any], form: Any) -> str:
    return f"{form(estimate['low'])} to {form(estimate['high'])}"


def _nats(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
