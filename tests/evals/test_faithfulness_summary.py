"""Findings on faithfulness in words: the verdict first, and no claim where nothing can be told."""

import copy

import pytest

from saelora.evals.faithfulness.result import Faithfulness
from saelora.evals.faithfulness.summary import lines
from saelora.records import from_json


def estimate(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


UNDEFINED = {"value": None, "low": None, "high": None}


def rises(sae, adapted, key="ratio"):
    ratio = UNDEFINED if sae < 0.01 else estimate(adapted / sae)
    return {"rise_sae": estimate(sae), "rise_adapted": estimate(adapted), key: ratio}


CES = {"ce_sae": estimate(3.2), "ce_adapted": estimate(3.1)}
RESULT = {
    "n_predictions": 20_000,
    "ce": {"sae": estimate(3.2), "adapted": estimate(3.1)},
    "gain": estimate(0.1),
    "sae_taken_out": {"ce_base": estimate(3.0), "ce_adapted_clean": estimate(3.02), "harm": estimate(0.02)},
    "exempt": {
        "ids": [1, 2],
        "first": False,
        "n_positions": 120,
        "n_after_first": 40,
        "spliced_too": {**CES, **rises(6.0, 6.2), "excess": estimate(0.2)},
        "after_first": {**CES, **rises(0.05, 0.06), "excess": estimate(0.01, 0.005)},
        "attention": {
            "layers": [],
            "mean": {"base": estimate(0.4), "sae": estimate(0.41), "adapted": estimate(0.42)},
            "change": estimate(0.01, 0.002),
            "n_rows": 16,
        },
        "attention_missing": None,
    },
    "ablation": {
        "n_predictions": 8_000,
        "draws": 3,
        "n_alive": 3000,
        "random": [{"k": 1, "share": 0.0001, **rises(0.0, 0.0)}, {"k": 256, "share": 0.055, **rises(0.2, 0.19)}],
        "top": [{"k": 1, "share": 0.02, **rises(0.1, 0.1)}, {"k": 256, "share": 0.4, **rises(2.0, 1.9)}],
        "random_pooled": estimate(0.95),
        "top_pooled": estimate(0.95),
    },
    "shuffled": {"ce_sae": estimate(7.2), "ce_adapted": estimate(6.9), **rises(4.0, 3.8, "reliance")},
    "zeroed": {"ce_sae": estimate(9.2), "ce_adapted": estimate(9.1), **rises(6.0, 6.0, "reliance")},
    "other_sae": None,
    "verdict": "reads_sae",
    "why": "latents mixed up: 0.95 times",
}


def changed(**parts):
    result = copy.deepcopy(RESULT)
    for path, value in parts.items():
        *outer, last = path.split("__")
        target = result
        for key in outer:
            target = target[key]
        target[last] = value
    return read(result)


def read(result):
    return from_json(Faithfulness, result, "faithfulness.json", "")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("reads_sae", "The adapted model reads its SAE"),
        ("bypasses_sae", "goes round its SAE"),
        ("unclear", "cannot be told"),
        ("reads its SAE", "The adapted model reads its SAE"),  # as older versions wrote it
        ("goes round its SAE", "goes round its SAE"),
    ],
)
def test_the_verdict_comes_first_with_its_reasons(verdict, said):
    first = lines(changed(verdict=verdict))[0]
    assert said in first
    assert "latents mixed up: 0.95 times" in first


def test_every_measurement_is_told_with_numbers_and_intervals():
    text = "\n".join(lines(read(RESULT)))
    for said in (
        "rises by 4.000 nats in the spliced model (3.990 to 4.010) and by 3.800 in the adapted one (3.790 to 3.810)",
        "a ratio of 0.95 (0.94 to 0.96)",
        "Without 256 most active latents (40.0% of all activation; 8,000 predictions)",
        "Without 256 random latents (5.5% of all activation",
        "makes it 0.020 nats worse than the original (0.010 to 0.030)",
        "With the exempt positions spliced too, cross entropy rises by 6.000 nats",
        "have seen any text (here 40)",
        "41.0% of their attention to exempt ones in the spliced model and 42.0% in the adapted one",
        "+1.00 points, +0.80 to +1.20",
        "20,000 held-out predictions",
    ):
        assert said in text
    assert "None" not in text
    assert "nan" not in text


def test_a_rise_that_is_none_is_given_no_ratio():
    text = "\n".join(lines(changed(shuffled={**CES, **rises(0.0, 0.2, "reliance")})))
    assert "no ratio is given, since the spliced model's rise cannot be told from 0" in text
    assert "None" not in text


def test_harm_is_claimed_only_where_it_can_be_told():
    assert "as good as the original, as far as can be told" in "\n".join(
        lines(changed(sae_taken_out__harm=estimate(0.002)))
    )
    assert "0.050 nats better than the original" in "\n".join(lines(changed(sae_taken_out__harm=estimate(-0.05))))


def test_what_was_not_measured_is_said_to_be_so():
    nothing = {
        "spliced_too": None,
        "after_first": None,
        "attention": None,
        "attention_missing": "no position is exempt",
    }
    text = "\n".join(
        lines(changed(exempt={"ids": [], "first": False, "n_positions": 0, "n_after_first": 0, **nothing}))
    )
    assert "No position of this text is exempt" in text
    text = "\n".join(lines(changed(exempt__attention=None, exempt__attention_missing="layer 2 gives no weights")))
    assert "was not measured: layer 2 gives no weights" in text
    text = "\n".join(lines(changed(exempt__after_first=None)))
    assert "All of them begin a row" in text
    text = "\n".join(lines(changed(ablation__top=[], ablation__random=[], ablation__n_alive=1)))
    assert "Too few latents fire on this text (1)" in text


def test_another_sae_is_told_beside_the_adapter_s_own():
    other = {
        "ref": "other/sae",
        "hookpoint": "layers.1.resid_post",
        "fvu": 0.2,
        "own_fvu": 0.1,
        "ce_sae": estimate(3.3),
        "ce_adapted": estimate(3.2),
        "gap_closed": estimate(0.333),
        "own_gap_closed": estimate(0.5),
    }
    text = "\n".join(lines(changed(other_sae=other)))
    assert "Under other/sae (FVU 0.200, its own 0.100) the adapter closes 33.3% of the gap (32.3% to 34.3%)" in text
    assert "under its own it closes 50.0%" in text
    assert "makes it worse" in "\n".join(lines(changed(other_sae={**other, "gap_closed": estimate(-0.2)})))
    assert "has no gap to close" in "\n".join(lines(changed(other_sae={**other, "gap_closed": UNDEFINED})))
