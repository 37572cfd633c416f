"""What is said of steering follows the numbers."""

import copy
from typing import Any

import pytest

from saelora.evals.steering.result import Steering
from saelora.evals.steering.summary import lines
from saelora.records import from_json


def estimate(value: float | None, half: float | None = 0.01) -> dict[str, float | None]:
    if value is None or half is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - half, "high": value + half}


def side(difference: float | None, half: float | None = 0.01) -> dict[str, Any]:
    return {
        "base": estimate(0.05),
        "adapted": estimate(0.06),
        "difference_raw": estimate(difference, half),
        "difference_normalised": estimate(1.5, 0.5),
    }


def result_of(difference: float | None = 0.0, half: float | None = 0.01, score: float = 0.1, **other: Any) -> Steering:
    sides = {"positives": side(difference, half), "negatives": side(0.0)}
    entry = {"alpha": 0.5, "tuning": [{"alpha": 0.5, "score": score}, {"alpha": 2.0, "score": None}], **sides}
    n = {"positives": 24, "negatives": 23}
    latent = {"latent": 7, "rate": 0.05, "n": n, "n_tuning": n, "methods": {"scale": entry}, "how": "given"}
    latent |= {"selectivity": 0.5, "max_activation": 3.0, "unit": 3.0, "top_passages": []}
    corpora = {"source": "x", "divided_by": "documents", "window_tokens": 8, "passages": {}, "tokens": {}}
    found = {
        "level": 0.9,
        "corpora": {**corpora, "positives": "found", "negatives": "found"},
        "hookpoint": "layers.1.resid_post",
        "bos": False,
        "methods": ["scale"],
        "latents": [latent],
        "pooled": {"scale": copy.deepcopy(sides)},
        "skipped": [],
        **other,
    }
    return from_json(Steering, found, "steering.json", "")


@pytest.mark.parametrize(
    ("difference", "half", "says"),
    [
        (
            0.02,
            0.01,
            "the adapted model comes out higher, adapted minus original +0.0200 (90 % interval +0.0100 to +0.0300)",
        ),
        (-0.02, 0.01, "the adapted model comes out lower"),
        (0.02, 0.03, "no difference between the models can be told"),
        (0.02, None, "without an interval"),
        (None, None, "no difference between the models could be measured"),
    ],
)
def test_the_first_line_says_no_more_than_the_interval_allows(
    difference: float | None, half: float | None, says: str
) -> None:
    first = lines(result_of(difference, half))[0]
    assert says in first
    assert "+0.0500 nats per token in the original and by +0.0600 in the adapted model" in first


def test_steering_that_helps_no_text_is_said_to_be_harm() -> None:
    assert not any("harm" in text for text in lines(result_of(score=0.1)))
    assert any("for 1 of 1 latents" in text and "harm" in text for text in lines(result_of(score=-0.1)))


def test_the_papers_scale_comes_with_its_caveat() -> None:
    (told,) = [text for text in lines(result_of()) if "normalised" in text]
    assert "+1.50 (90 % interval +1.00 to +2.00) for scale" in told
    assert "hangs on two texts" in told


def test_positions_steered_and_latents_left_out_are_named() -> None:
    skipped = [{"latent": i, "why": f"latent {i} never fires"} for i in range(5)]
    told = lines(result_of(bos=True, skipped=skipped))
    assert any("BOS included" in text for text in told)
    assert "latent 2 never fires; and 2 more." in told[-1]
