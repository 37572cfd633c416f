"""What --parts tokens found, in plain words."""

from typing import Any

from saelora.evals.trained import trained
from saelora.report.text import one_line

_BINS = {
    "by_position": ("position in the row", "tokens before"),
    "by_frequency": ("the predicted token's frequency in training text", "per million"),
    "by_recon_error": ("how badly the SAE reconstructs the token", "relative squared error"),
}


def lines(result: dict[str, Any]) -> list[str]:
    """The finding first; then what it is made of, where it is found, and the two extremes in context."""
    return [*_headline(result), _cost(result), *_where(result), *_extremes(result)]


def _headline(result: dict[str, Any]) -> list[str]:
    who = trained(result)
    change, helped, hurt = result["change"], result["share_helped"], result["share_hurt"]
    mean = change["mean"]
    if mean["high"] < 0:
        told = f"On average {who} lowers the loss by {_nats(-mean['value'])} nats a prediction"
        interval = f"95 % interval {_nats(-mean['high'])} to {_nats(-mean['low'])}"
    elif mean["low"] > 0:
        told = f"On average {who} raises the loss by {_nats(mean['value'])} nats a prediction"
        interval = f"95 % interval {_nats(mean['low'])} to {_nats(mean['high'])}"
    else:
        told = f"On average {who} changes the loss by {_nats(mean['value'])} nats a prediction, maybe by none"
        interval = f"95 % interval {_nats(mean['low'])} to {_nats(mean['high'])}"
    out = [f"{told} ({interval}; {result['n_predictions']:,} predictions, against the spliced model)."]
    sides = (
        f"It helps {_share(helped)} of predictions{_by(change['mean_helped'])}; "
        f"it hurts {_share(hurt)}{_by(change['mean_hurt'])}."
    )
    q = change["quantiles"]
    middle = f"The middle 90 % of changes lie between {_nats(q['0.05'])} and {_nats(q['0.95'])} nats"
    top = result["concentration"]["0.01"]
    most = "" if top is None else f"; the 1 % helped most hold {top:.0%} of all that is gained"
    return [*out, sides, f"{middle}, the median is {_nats(q['0.5'])}{most}."]


def _by(mean: dict[str, Any]) -> str:
    return "" if mean["value"] is None else f", by {_nats(abs(mean['value']))} nats on average"


def _cost(result: dict[str, Any]) -> str:
    mean, q = result["cost"]["mean"], result["cost"]["quantiles"]
    return (
        f"The splice itself costs {_nats(mean['value'])} nats a prediction (95 % interval {_nats(mean['low'])} to "
        f"{_nats(mean['high'])}), more than {_nats(q['0.95'])} on one prediction in twenty."
    )


def _where(result: dict[str, Any]) -> list[str]:
    return [line for name in _BINS if (line := _told(result[name], *_BINS[name])) is not None]


def _told(bins: list[dict[str, Any]], of: str, unit: str) -> str | None:
    """Where the share of the gap that is closed differs, if the intervals of its extremes lie apart."""
    known = [b for b in bins if b["gap_closed"]["value"] is not None]
    if not bins:
        return None
    if len(known) < 2:
        told = f"{len(known)} of {len(bins)} groups"
        return f"By {of}: the splice's cost can be told from zero in {told}, too few to compare."
    low = min(known, key=lambda b: b["gap_closed"]["value"])
    high = max(known, key=lambda b: b["gap_closed"]["value"])
    if low["gap_closed"]["high"] >= high["gap_closed"]["low"]:
        return f"By {of}: no difference in the share of the gap closed that these data can tell."
    harm = "; it does harm there" if low["gap_closed"]["high"] < 0 else ""
    return (
        f"By {of}: the largest share of the gap is closed at {_group(high, unit)} ({_closed(high)}), the smallest at "
        f"{_group(low, unit)} ({_closed(low)}{harm})."
    )


def _group(each: dict[str, Any], unit: str) -> str:
    return each["label"] if each["label"] == "never seen" else f"{each['label']} {unit}"


def _closed(each: dict[str, Any]) -> str:
    closed = each["gap_closed"]
    return f"{closed['value']:.0%}, {closed['low']:.0%} to {closed['high']:.0%}"


def _extremes(result: dict[str, Any]) -> list[str]:
    out = []
    for name, verb in (("most_helped", "Helped most"), ("most_hurt", "Hurt most")):
        if passages := result["passages"][name]:
            out.append(f"{verb}: {_in_context(passages[0], result['vocab'])}")
    return out


def _in_context(passage: dict[str, Any], vocab: dict[str, str], n_before: int = 14) -> str:
    at = passage["focus"]
    before = "".join(vocab[str(i)] for i in passage["ids"][max(0, at - n_before) : at])
    token = vocab[str(passage["ids"][at])]
    ce = {arm: passage["ce"][arm][at] for arm in ("base", "sae", "adapted")}
    return (
        f"“… {one_line(before)}” → “{one_line(token)}”: loss {ce['base']:.2f} in the original, {ce['sae']:.2f} "
        f"spliced, {ce['adapted']:.2f} adapted."
    )


def _share(e: dict[str, Any]) -> str:
    return f"{e['value']:.1%} ({e['low']:.1%} to {e['high']:.1%})"


def _nats(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
