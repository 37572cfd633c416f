"""Results as aligned plain text and as Markdown: pure functions of a results dict."""

import textwrap
from collections.abc import Callable
from typing import Any

from saelora.reporting.format import nats, one_line
from saelora.reporting.outcome import DIVERGED, DONE, outcome

ARM_NAMES = {
    "base": "original model",
    "sae": "spliced (SAE in)",
    "adapted": "spliced + adapted",
    "adapted_clean": "adapted, SAE taken out",
}
# method -> what to call its outcome, and what made it
_NAMES = {
    "linear": ("spliced + linear map", "the linear map"),
    "lora+sae": ("adapted, SAE trained", "the adapter with the SAE trained"),
    "sae": ("spliced, SAE finetuned", "finetuning"),
}
_HEADER = ("", "cross entropy", "KL to original", "top-1 agreement", "loss recovered")


def loss_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per model: name, cross entropy, KL, top-1 agreement, loss recovered."""
    rows: list[tuple[str, ...]] = []
    for arm, name in ARM_NAMES.items():
        if f"ce_{arm}" not in results:
            continue
        if arm == "adapted":
            name = _NAMES.get(results.get("method", "lora"), (name, ""))[0]
        recovered = results.get(f"loss_recovered_{arm}")
        kl, top1 = (results[f"{key}_{arm}"] if arm != "base" else None for key in ("kl", "top1"))
        rows.append(
            (
                name,
                f"{results[f'ce_{arm}']:.4f}",
                "" if kl is None else f"{kl:.4f}",
                "" if top1 is None else f"{top1:.1%}",
                "" if recovered is None else f"{recovered:.1%}",
            )
        )
    return rows


def has_gap(results: dict[str, Any]) -> bool:
    """Whether the SAE measurably costs anything: only then is a share of the gap closed worth stating."""
    low = results.get("ci95", {}).get("ce_gap", [results.get("ce_gap", 0.0)])[0]
    return low > 0 and "gap_closed" in results


def headline(results: dict[str, Any]) -> str:
    """The result in one sentence; a gap that the data cannot tell from zero is not given a share."""
    what = _NAMES.get(results.get("method", "lora"), ("", "the adapter"))[1]
    if "ce_gap" not in results:
        return f"The original model's cross entropy is {results['ce_base']:.4f} nats per token."
    if outcome(results) == DIVERGED:
        after, before = (f"{results[f'ce_{arm}']:.3f}" for arm in ("adapted", "sae"))
        return f"The run DIVERGED: cross entropy {after} after training, {before} before. Train anew with a lower --lr."
    gap = results["ce_gap"]
    low = results.get("ci95", {}).get("ce_gap", [gap])[0]
    if low <= 0:
        told = f"The SAE has no measurable cost: {nats(gap)} nats per token{_interval(results, 'ce_gap', nats)}"
        if "ce_adapted" not in results:
            return f"{told}."
        change = results["ce_adapted"] - results["ce_sae"]
        subject = what[0].upper() + what[1:]
        return f"{told}; there is no gap to close. {subject} changes the cross entropy by {nats(change)} nats."
    told = f"The SAE costs {nats(gap)} nats per token"
    if "gap_closed" not in results:
        return f"{told}{_interval(results, 'ce_gap', nats)}."
    closed, interval = results["gap_closed"], _interval(results, "gap_closed", "{:.1%}".format)
    if closed < 0:
        return f"{told}; {what} makes it worse: gap closed {closed:.1%}{interval}."
    if results.get("ci95", {}).get("gap_closed", [closed])[0] <= 0:
        return f"{told}; what {what} wins back cannot be told from nothing: {closed:.1%} of that{interval}."
    return f"{told}; {what} wins back {closed:.1%} of that{interval}."


def warnings(results: dict[str, Any]) -> list[str]:
    """What a reader must know before any figure: that the run did harm, and what was forced or not checked."""
    about = results.get("about") or {}
    told = [f"{harm}."] if (harm := ended_worse(results)) else []
    told += [f"Forced by --other-weights: {one_line(str(each))}." for each in about.get("other_weights", [])]
    return told + [f"Not checked: {one_line(str(each))}." for each in about.get("unchecked", [])]


def ended_worse(results: dict[str, Any]) -> str | None:
    """That the outcome is worse than the spliced model it began from, in words; None where ``outcome`` says "done"."""
    if outcome(results) == DONE:
        return None
    figures = [
        f"{name} {results[f'{key}_adapted']:.4f} against {results[f'{key}_sae']:.4f}"
        for key, name in (("ce", "cross entropy"), ("kl", "KL to the original"))
        if None not in (results.get(f"{key}_adapted"), results.get(f"{key}_sae"))
    ]
    told = f": {', '.join(figures)} nats per token" if figures else ""
    return f"This ended worse than the spliced model that it began from{told}"


def _interval(results: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    if key not in results.get("ci95", {}):
        return ""
    low, high = results["ci95"][key]
    return f" (95 % interval {form(low)} to {form(high)})"


def loss_table(results: dict[str, Any]) -> str:
    """Headline and table for a terminal."""
    rows: list[tuple[str, ...]] = [_HEADER, *loss_rows(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines += ["", headline(results), *(f"CAREFUL: {told}" for told in warnings(results)), cost(results)]
    lines += [starts] if (starts := row_starts(results)) else []
    kinds = {"saes": ("SAE at", " (active latents per token)"), "saes_adapted": ("As trained, at", "")}
    for key, (name, meaning) in kinds.items():
        for hookpoint, sae in results.get(key, {}).items():
            lines.append(f"{name} {hookpoint}: {fvu_text(sae)}, L0 {sae['l0']:.1f}{meaning}.")
            lines += [f"  {told[0].upper()}{told[1:]}." for told in (error_text(sae), massive_text(sae)) if told]
    return "\n".join(line.rstrip() for line in lines)


def fvu_text(sae: dict[str, Any]) -> str:
    """An SAE's FVU, and what it is without the few tokens that may make it, where the results have that."""
    told = f"FVU {sae['fvu']:.3f}"
    if sae.get("top_variance") is None or sae.get("fvu_rest") is None:
        return told
    top = f"{sae['top_variance']:.0%} of the variance"
    return f"{told} ({sae['fvu_rest']:.3f} without the largest 0.1 % of tokens, which hold {top})"


def error_text(sae: dict[str, Any]) -> str:
    """How large an SAE's error is at most tokens; nothing where the results are older than that figure."""
    if sae.get("relative_error") is None:
        return ""
    low, high = sae["relative_error_q10"], sae["relative_error_q90"]
    median = f"median {sae['relative_error']:.3f}, 10 % to 90 % of tokens {low:.3f} to {high:.3f}"
    return f"squared error of a token over its squared norm: {median}"


def massive_text(sae: dict[str, Any]) -> str:
    """How many positions were spared as massive; nothing where none are to be."""
    if sae.get("n_massive") is None:
        return ""
    n, total = sae["n_massive"], sae["n_positions"]
    return f"{n:,} of {total:,} positions spared as massive (norm above {sae['massive_limit']:,.4g})"


def row_starts(results: dict[str, Any]) -> str:
    """What became of the first positions of rows that begin with no exempt token; nothing where none does so."""
    found = results.get("row_starts") or {"n_without_exempt_token": 0}
    if not found["n_without_exempt_token"]:
        return ""
    n, spared = found["n_without_exempt_token"], found["n_positions_spared"]
    told = f"{n:,} of {found['n_rows']:,} rows begin with a token that is not exempt"
    if not spared:
        return f"{told}, and it was replaced; in many models attention rests there (--exempt first spares it)."
    where = "position 0 was" if spared == 1 else f"positions 0 to {spared - 1} were"
    return f"{told}: {where} left to the model all the same."


def cost(results: dict[str, Any]) -> str:
    """What was spent: tokens and seconds of training, tokens of evaluation."""
    evaluated = f"Evaluated on {results['n_tokens_evaluated']:,} held-out predictions (nats per predicted token)."
    if "n_tokens_trained" not in results:
        return evaluated
    if "seconds_training" not in results:  # one of several that shared their passes
        others = f" beside {results['n_branches'] - 1} others" if results.get("n_branches", 1) > 1 else ""
        return f"Adapted on {results['n_tokens_trained']:,} tokens{others}. {evaluated}"
    verb = "Adapted" if results.get("method", "lora") in ("lora", "lora+sae") else "Trained"
    trained = f"{verb} on {results['n_tokens_trained']:,} tokens in {results['seconds_training']:.0f} s"
    return f"{trained} ({results['tokens_per_second']:.0f} tokens/s). {evaluated}"


def markdown_table(results: dict[str, Any]) -> str:
    """The same table for a card."""
    rows: list[tuple[str, ...]] = [_HEADER, ("---",) * len(_HEADER), *loss_rows(results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def samples_text(samples: list[dict[str, str]], width: int = 100) -> str:
    """Continuations side by side, for a terminal."""
    lines = []
    for sample in samples:
        lines += ["", *textwrap.wrap(f"… {one_line(sample['prompt'])}", width)]
        for arm in ("original", "spliced", "adapted"):
            if arm in sample:
                lines += textwrap.wrap(f"{arm:>9}: {one_line(sample[arm])}", width, subsequent_indent=" " * 11)
    return "\n".join(lines)
