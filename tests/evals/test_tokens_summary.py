"""What the tokens part found, in words: findings that the data bear out, and none that they do not."""

from typing import Any

from saelora.evals.tokens.result import Tokens
from saelora.evals.tokens.summary import lines
from saelora.records import from_json

SIDES = dict.fromkeys(("helped_below", "helped_above", "hurt_below", "hurt_above"), 0)
NOTHING = {"value": None, "low": None, "high": None}


def e(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def group(label: str, closed: dict[str, Any]) -> dict[str, Any]:
    same = {name: e(3.0) for name in ("ce_base", "ce_sae", "ce_adapted", "change")}
    return {"low": 0, "high": 1, "label": label, "n": 10, **same, "gap_closed": closed}


def passage() -> dict[str, Any]:
    ce = {"base": [None, 0.5, 1.0], "sae": [None, 0.5, 7.25], "adapted": [None, 0.5, 2.0]}
    found = {"row": 0, "start": 0, "focus": 2, "ids": [0, 1, 2], "ce": ce, "counted": [False, True, True]}
    return {**found, "kl": {}, "top": {}, "recon_error": [None, 0.1, 0.1]}


def result(mean: dict[str, float], **other: Any) -> Tokens:
    quantiles = {"0.05": -0.8, "0.5": -0.004, "0.95": 0.6}
    found: dict[str, Any] = {
        "n_predictions": 12345,
        "share_helped": e(0.58),
        "share_hurt": e(0.41),
        "change": {"mean": mean, "quantiles": quantiles, "mean_helped": e(-0.31), "mean_hurt": e(0.29)},
        "cost": {"mean": e(0.16), "quantiles": {"0.95": 1.4}},
        "concentration": {"0.01": 0.12, "0.1": 0.5},
        "by_position": [],
        "by_frequency": [],
        "by_recon_error": [],
        "histogram": {"edges": [0.1, 1.0], "helped": [1], "hurt": [1], **SIDES},
        "frequency_counted_on": "nothing",
        "recon_error_of": "layers.1.resid_post",
        "text": [],
        "vocab": {"0": "<s>", "1": " a\n", "2": " shrimp"},
        "passages": {"most_helped": [passage()], "most_hurt": []},
    }
    return from_json(Tokens, {**found, **other}, "tokens.json", "")


def test_the_first_line_says_which_way_and_how_sure():
    assert lines(result(e(-0.05)))[0].startswith(
        "On average the adapter lowers the loss by 0.050 nats a prediction (95 %"
    )
    assert "interval 0.040 to 0.060; 12,345 predictions" in lines(result(e(-0.05)))[0]
    assert "raises the loss by 0.050" in lines(result(e(0.05)))[0]
    unclear = lines(result(e(-0.005)))[0]
    assert "lowers" not in unclear
    assert "maybe by none" in unclear


def test_shares_and_sizes_are_told():
    told = " ".join(lines(result(e(-0.05))))
    assert "helps 58.0% (57.0% to 59.0%) of predictions, by 0.310 nats on average" in told
    assert "hurts 41.0% (40.0% to 42.0%), by 0.290 nats on average" in told
    assert "the 1 % helped most hold 12% of all that is gained" in told
    assert "costs 0.160 nats" in told


def test_groups_are_compared_only_where_their_intervals_lie_apart():
    apart = [group("1–10", e(0.5)), group("10–100", e(0.2)), group("never seen", NOTHING)]
    told = " ".join(lines(result(e(-0.05), by_frequency=apart)))
    assert "largest share of the gap is closed at 1–10 per million (50%, 49% to 51%)" in told
    assert "smallest at 10–100 per million (20%" in told
    assert "harm" not in told
    close = [group("1–10", e(0.5, 0.2)), group("10–100", e(0.2, 0.2))]
    told = " ".join(lines(result(e(-0.05), by_frequency=close)))
    assert "largest" not in told
    assert "no difference" in told
    few = [group("1–10", e(0.5)), group("10–100", NOTHING)]
    assert "1 of 2 groups, too few to compare" in " ".join(lines(result(e(-0.05), by_position=few)))


def test_harm_in_a_group_is_named():
    groups = [group("1–10", e(0.5)), group("10–100", e(-0.2))]
    assert "does harm there" in " ".join(lines(result(e(-0.05), by_frequency=groups)))


def test_extremes_are_shown_in_context_on_one_line():
    told = lines(result(e(-0.05)))
    assert told[-1] == ("Helped most: “… <s> a” → “shrimp”: loss 1.00 in the original, 7.25 spliced, 2.00 adapted.")
    assert not any("\n" in line for line in told)


def test_an_adapter_that_changes_nothing_is_told_without_averages():
    zero = e(0.0, 0.0)
    change = {"mean": zero, "quantiles": dict.fromkeys(("0.05", "0.5", "0.95"), 0.0)}
    change |= {"mean_helped": NOTHING, "mean_hurt": NOTHING}
    none: dict[str, Any] = {"share_helped": zero, "share_hurt": zero, "concentration": {"0.01": None, "0.1": None}}
    none |= {"change": change, "passages": {"most_helped": [], "most_hurt": []}}
    told = lines(result(zero, **none))
    assert told[1] == "It helps 0.0% (0.0% to 0.0%) of predictions; it hurts 0.0% (0.0% to 0.0%)."
