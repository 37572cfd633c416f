"""Results as aligned plain text and as Markdown: pure functions of a result."""

import textwrap
from collections.abc import Callable, Sequence
from statistics import median

from saelora.evals.loss_result import FigureName, LossFigures, LossResult, SAEFigures
from saelora.identity import kind_of, replacement_words
from saelora.reporting import names
from saelora.reporting.format import capital, nats, one_line
from saelora.reporting.outcome import DIVERGED, DONE, outcome

_MANY = 8  # SAEs: of more a terminal is told ranges
_HEADER = ("", "cross entropy", "KL to original", "top-1 agreement", "loss recovered")


def loss_rows(results: LossResult) -> list[tuple[str, ...]]:
    """One row per model: name, cross entropy, KL, top-1 agreement, loss recovered."""
    rows: list[tuple[str, ...]] = []
    for variant, name in names.of_results(results).items():
        found = results.of(variant)
        if found is None:
            continue
        rows.append(
            (
                name,
                f"{found.ce:.4f}",
                "" if found.kl is None else f"{found.kl:.4f}",
                "" if found.top1 is None else f"{found.top1:.1%}",
                "" if found.loss_recovered is None else f"{found.loss_recovered:.1%}",
            )
        )
    return rows


def has_gap(results: LossFigures) -> bool:
    """Whether the SAE measurably costs anything: only then is a share of the gap closed worth stating."""
    return results.gap_closed is not None and _least_gap(results) > 0


def _least_gap(results: LossFigures) -> float:
    return (results.interval("ce_gap") or [results.ce_gap or 0.0])[0]


def headline(results: LossResult) -> str:
    """The result in one sentence; a gap that the data cannot tell from zero is not given a share."""
    what = names.maker(results)
    gap, before, after = results.ce_gap, results.ce_sae, results.ce_adapted
    if gap is None or before is None:
        return f"The original model's cross entropy is {results.ce_base:.4f} nats per token."
    if after is not None and outcome(results) == DIVERGED:
        if results.n_tokens_trained is None:
            return (
                f"Adapted it is far worse than spliced: cross entropy {after:.3f}, spliced {before:.3f}. If it was "
                "trained as it is measured here, the run DIVERGED: train anew with a lower --lr."
            )
        return (
            f"The run DIVERGED: cross entropy {after:.3f} after training, {before:.3f} before. Train anew with a lower "
            "--lr."
        )
    the_saes, several = _the_saes(results), len(results.saes) > 1
    if _least_gap(results) <= 0:
        has = "have" if several else "has"
        told = f"{the_saes} {has} no measurable cost: {nats(gap)} nats per token{_interval(results, 'ce_gap', nats)}"
        if after is None:
            return f"{told}."
        changed = f"{capital(what)} changes the cross entropy by {nats(after - before)} nats."
        return f"{told}; there is no gap to close. {changed}"
    told = f"{the_saes} {'cost' if several else 'costs'} {nats(gap)} nats per token"
    closed = results.gap_closed
    if closed is None:
        return f"{told}{_interval(results, 'ce_gap', nats)}."
    interval = _interval(results, "gap_closed", "{:.1%}".format)
    if closed < 0:
        return f"{told}; {what} makes it worse: gap closed {closed:.1%}{interval}."
    if (results.interval("gap_closed") or [closed])[0] <= 0:
        return f"{told}; what {what} wins back cannot be told from nothing: {closed:.1%} of that{interval}."
    return f"{told}; {what} wins back {closed:.1%} of that{interval}."


def lead(results: LossResult) -> str:
    """The headline with the cross entropies that it is about, and on how many predictions, in one sentence."""
    told, before, after = headline(results), results.ce_sae, results.ce_adapted
    if before is None or after is None or outcome(results) == DIVERGED:
        return told
    kept = "" if results.interval("gap_closed") or results.interval("ce_gap") else ", without intervals"
    n = "" if results.n_tokens_evaluated is None else f", on {results.n_tokens_evaluated:,} predictions"
    figures = f"cross entropy {before:.3f} → {after:.3f}, original {results.ce_base:.3f}"
    return f"{told.removesuffix('.')}; {figures}{n}{kept}."


def closed(results: LossFigures) -> str | None:
    """The share of the gap that was closed, with its interval; None where there is no gap to speak of."""
    if not has_gap(results) or results.gap_closed is None:
        return None
    return f"{results.gap_closed:.1%}{_interval(results, 'gap_closed', '{:.1%}'.format)}"


def _the_saes(results: LossResult) -> str:
    """What is spliced in, as the subject of a sentence, and how: "The SAE", "The 3 SAEs", "The 30 transcoders"."""
    n, kind = len(results.saes), names.kind(results)
    subject = f"The {n} {kind.many}" if n > 1 else f"The {kind.one}"
    how = "" if results.about is None else replacement_words(results.about.replacement, kind, n)
    return f"{subject}, {how}," if how else subject


def warnings(results: LossResult) -> list[str]:
    """What a reader must know before any figure: that the run did harm, and what was forced or not checked."""
    told = [f"{harm}."] if (harm := ended_worse(results)) else []
    if results.about is not None:
        told += [f"Forced by --other-weights: {one_line(each)}." for each in results.about.other_weights]
        told += [f"Not checked: {one_line(each)}." for each in results.about.unchecked]
    return told


def ended_worse(results: LossFigures) -> str | None:
    """That the outcome is worse than the spliced model, in words; None where ``outcome`` says "done".

    Only of a run's own result is it known that the spliced model is the one that it began from: an evaluation may put
    transcoders in otherwise than the training did, or read another text.
    """
    if outcome(results) == DONE:
        return None
    figures = [
        f"{name} {after:.4f} against {before:.4f}"
        for after, before, name in (
            (results.ce_adapted, results.ce_sae, "cross entropy"),
            (results.kl_adapted, results.kl_sae, "KL to the original"),
        )
        if after is not None and before is not None
    ]
    told = f": {', '.join(figures)} nats per token" if figures else ""
    if isinstance(results, LossResult) and results.n_tokens_trained is None:
        return f"As measured here, the adapted model is worse than the spliced one{told}"
    return f"This ended worse than the spliced model that it began from{told}"


def _interval(results: LossFigures, name: FigureName, form: Callable[[float], str]) -> str:
    found = results.interval(name)
    return "" if found is None else f" (95 % interval {form(found[0])} to {form(found[1])})"


def loss_table(results: LossResult) -> str:
    """Headline and table for a terminal."""
    rows: list[tuple[str, ...]] = [_HEADER, *loss_rows(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines += ["", headline(results), *(f"CAREFUL: {told}" for told in warnings(results)), cost(results)]
    lines += [starts] if (starts := row_starts(results)) else []
    lines += _sae_lines(results.saes, _places(results), names.kind(results).many, " (active latents per token)")
    as_trained = dict.fromkeys(results.saes_adapted, "As trained, at")
    lines += _sae_lines(results.saes_adapted, as_trained, "as trained", "")
    return "\n".join(line.rstrip() for line in lines)


def _places(results: LossResult) -> dict[str, str]:
    """What each line on one of those spliced in begins with, by hookpoint: "SAE at", "Transcoder at"."""
    kinds = {} if results.about is None else {sae.hookpoint: kind_of(sae).one for sae in results.about.saes}
    found = {hookpoint: kinds.get(hookpoint, names.kind(results).one) for hookpoint in results.saes}
    return {hookpoint: f"{capital(name)} at" for hookpoint, name in found.items()}


def _sae_lines(saes: dict[str, SAEFigures], begins: dict[str, str], several: str, meaning: str) -> list[str]:
    if len(saes) > _MANY:
        ranges = ", ".join(
            f"{figure} {_range([getattr(s, key) for s in saes.values()], form)}"
            for figure, key, form in (("FVU", "fvu", "{:.3f}"), ("L0", "l0", "{:.1f}"))
        )
        worst = max(saes, key=lambda hookpoint: saes[hookpoint].fvu)
        return [f"{len(saes)} {several}: {ranges}{meaning}; the largest FVU is that of {worst}."]
    lines = []
    for hookpoint, sae in saes.items():
        lines.append(f"{begins[hookpoint]} {hookpoint}: {fvu_text(sae)}, L0 {sae.l0:.1f}{meaning}.")
        lines += [f"  {capital(told)}." for told in (error_text(sae), massive_text(sae)) if told]
    return lines


def _range(values: Sequence[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), median(values), max(values)))
    return f"{low} to {high}, median {middle}"


def fvu_text(sae: SAEFigures) -> str:
    """An SAE's FVU, and what it is without the few tokens that may make it, where the results have that."""
    told = f"FVU {sae.fvu:.3f}"
    if sae.top_variance is None or sae.fvu_rest is None:
        return told
    top = f"{sae.top_variance:.0%} of the variance"
    return f"{told} ({sae.fvu_rest:.3f} without the largest 0.1 % of tokens, which hold {top})"


def error_text(sae: SAEFigures) -> str:
    """How large an SAE's error is at most tokens; nothing where the results are older than that figure."""
    low, high = sae.relative_error_q10, sae.relative_error_q90
    if sae.relative_error is None or low is None or high is None:
        return ""
    spread = f"10 % to 90 % of tokens {low:.3f} to {high:.3f}"
    return f"squared error of a token over its squared norm: median {sae.relative_error:.3f}, {spread}"


def massive_text(sae: SAEFigures) -> str:
    """How many positions were spared as massive; nothing where none are to be."""
    if sae.n_massive is None or sae.n_positions is None or sae.massive_limit is None:
        return ""
    spared = f"{sae.n_massive:,} of {sae.n_positions:,} positions spared as massive"
    return f"{spared} (norm above {sae.massive_limit:,.4g})"


def row_starts(results: LossResult) -> str:
    """What became of the first positions of rows that begin with no exempt token; nothing where none does so."""
    found = results.row_starts
    if found is None or not found.n_without_exempt_token:
        return ""
    spared = found.n_positions_spared
    told = f"{found.n_without_exempt_token:,} of {found.n_rows:,} rows begin with a token that is not exempt"
    if not spared:
        return f"{told}, and it was replaced; in many models attention rests there (--exempt first spares it)."
    where = "position 0 was" if spared == 1 else f"positions 0 to {spared - 1} were"
    return f"{told}: {where} left to the model all the same."


def cost(results: LossResult) -> str:
    """What was spent: tokens and seconds of training, tokens of evaluation."""
    evaluated = f"Evaluated on {results.n_tokens_evaluated:,} held-out predictions (nats per predicted token)."
    if results.n_tokens_trained is None:
        return evaluated
    if results.seconds_training is None:  # one of several that shared their passes
        others = f" beside {results.n_branches - 1} others" if results.n_branches > 1 else ""
        return f"Adapted on {results.n_tokens_trained:,} tokens{others}. {evaluated}"
    verb = "Adapted" if results.method in ("lora", "lora+sae") else "Trained"
    trained = f"{verb} on {results.n_tokens_trained:,} tokens in {results.seconds_training:.0f} s"
    return f"{trained} ({results.tokens_per_second:.0f} tokens/s). {evaluated}"


def markdown_table(results: LossResult) -> str:
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
