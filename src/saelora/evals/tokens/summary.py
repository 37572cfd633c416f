"""What --parts tokens found, in plain words."""

from typing import Literal

from saelora.evals.estimate import Estimate, above, below, number, numbers
from saelora.evals.tokens.result import Group, Passage, Tokens
from saelora.evals.variant import Variant
from saelora.reporting.format import nats, one_line

_BINS: dict[Literal["by_position", "by_frequency", "by_recon_error"], tuple[str, str]] = {
    "by_position": ("position in the row", "tokens before"),
    "by_frequency": ("the predicted token's frequency in training text", "per million"),
    "by_recon_error": ("how badly the token is reconstructed", "relative squared error"),
}


def lines(result: Tokens) -> list[str]:
    """The finding first; then what it is made of, where it is found, and the two extremes in context."""
    return [*_headline(result), _cost(result), *_where(result), *_extremes(result)]


def _headline(result: Tokens) -> list[str]:
    who, change = result.trained.words, result.change
    mean, low, high = numbers(change.mean)
    if below(change.mean, 0):
        told = f"On average {who} lowers the loss by {nats(-mean)} nats a prediction"
        low, high = -high, -low
    elif above(change.mean, 0):
        told = f"On average {who} raises the loss by {nats(mean)} nats a prediction"
    else:
        told = f"On average {who} changes the loss by {nats(mean)} nats a prediction, maybe by none"
    interval = f"95 % interval {nats(low)} to {nats(high)}"
    out = [f"{told} ({interval}; {result.n_predictions:,} predictions, against the spliced model)."]
    sides = (
        f"It helps {_share(result.share_helped)} of predictions{_by(change.mean_helped)}; "
        f"it hurts {_share(result.share_hurt)}{_by(change.mean_hurt)}."
    )
    q = change.quantiles
    middle = f"The middle 90 % of changes lie between {nats(q['0.05'])} and {nats(q['0.95'])} nats"
    top = result.concentration["0.01"]
    most = "" if top is None else f"; the 1 % helped most hold {top:.0%} of all that is gained"
    return [*out, sides, f"{middle}, the median is {nats(q['0.5'])}{most}."]


def _by(mean: Estimate) -> str:
    return "" if mean["value"] is None else f", by {nats(abs(mean['value']))} nats on average"


def _cost(result: Tokens) -> str:
    mean, low, high = numbers(result.cost.mean)
    return (
        f"The splice itself costs {nats(mean)} nats a prediction (95 % interval {nats(low)} to "
        f"{nats(high)}), more than {nats(result.cost.quantiles['0.95'])} on one prediction in twenty."
    )


def _where(result: Tokens) -> list[str]:
    return [line for name in _BINS if (line := _told(getattr(result, name), *_BINS[name])) is not None]


def _told(bins: list[Group], of: str, unit: str) -> str | None:
    """Where the share of the gap that is closed differs, if the intervals of its extremes lie apart."""
    known = [b for b in bins if b.gap_closed["value"] is not None]
    if not bins:
        return None
    if len(known) < 2:
        told = f"{len(known)} of {len(bins)} groups"
        return f"By {of}: the splice's cost can be told from zero in {told}, too few to compare."
    low = min(known, key=lambda b: number(b.gap_closed["value"]))
    high = max(known, key=lambda b: number(b.gap_closed["value"]))
    if number(low.gap_closed["high"]) >= number(high.gap_closed["low"]):
        return f"By {of}: no difference in the share of the gap closed that these data can tell."
    harm = "; it does harm there" if below(low.gap_closed, 0) else ""
    return (
        f"By {of}: the largest share of the gap is closed at {_group(high, unit)} ({_closed(high)}), the smallest at "
        f"{_group(low, unit)} ({_closed(low)}{harm})."
    )


def _group(each: Group, unit: str) -> str:
    return each.label if each.label == "never seen" else f"{each.label} {unit}"


def _closed(each: Group) -> str:
    return "{:.0%}, {:.0%} to {:.0%}".format(*numbers(each.gap_closed))


def _extremes(result: Tokens) -> list[str]:
    out = []
    for passages, verb in ((result.passages.most_helped, "Helped most"), (result.passages.most_hurt, "Hurt most")):
        if passages:
            out.append(f"{verb}: {_in_context(passages[0], result.vocab)}")
    return out


def _in_context(passage: Passage, vocab: dict[str, str], n_before: int = 14) -> str:
    at = passage.focus or 0
    before = "".join(vocab[str(i)] for i in passage.ids[max(0, at - n_before) : at])
    token = vocab[str(passage.ids[at])]
    base, spliced, adapted = (
        number(passage.ce[variant][at]) for variant in (Variant.BASE, Variant.SPLICED, Variant.ADAPTED)
    )
    return (
        f"“… {one_line(before)}” → “{one_line(token)}”: loss {base:.2f} in the original, {spliced:.2f} "
        f"spliced, {adapted:.2f} adapted."
    )


def _share(e: Estimate) -> str:
    return "{:.1%} ({:.1%} to {:.1%})".format(*numbers(e))
