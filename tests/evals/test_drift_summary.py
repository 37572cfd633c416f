"""What the drift part found, in words."""

from dataclasses import replace
from typing import Any

import pytest

from saelora.evals.drift.result import Drift
from saelora.evals.drift.summary import lines
from saelora.evals.trained import Trained
from saelora.records import from_json


def e(value: float, half: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def layer(i: int, sae: float, adapted: float, clean: float, half: float = 0.1) -> dict[str, Any]:
    by_arm = {"sae": e(sae), "adapted": e(adapted), "adapted_clean": e(clean)}
    shares = {arm: e(found["value"] / 100) for arm, found in by_arm.items()}
    difference = e(adapted - sae, half if adapted != sae else 0.0)
    return {
        "layer": i,
        "l2": by_arm,
        "relative_l2": shares,
        "cosine_distance": shares,
        "l2_difference": difference,
        "cosine_difference": difference,
    }


def result(*layers: dict[str, Any], identical: bool = True) -> Drift:
    found = {
        "identical": identical,
        "max_abs_difference": 0.0 if identical else 1.5,
        "jaccard": e(1.0 if identical else 0.7, 0.0 if identical else 0.01),
        "rate_correlation": e(1.0 if identical else 0.9, 0.0 if identical else 0.02),
        "l0": {"base": 32.0, "adapted": 32.0 if identical else 35.5},
        "fvu": {"base": e(0.145), "adapted": e(0.145 if identical else 0.2)},
    }
    return from_json(
        Drift, {"n_positions": 4079, "layers": list(layers), "latents": {"layers.1.resid_post": found}}, "", ""
    )


LAYERS = (layer(0, 0, 0, 0), layer(1, 20, 20, 0), layer(2, 20, 15, 1), layer(3, 20, 21, 2), layer(4, 20, 19.95, 3))


def test_layers_are_sorted_by_what_the_interval_says():
    told = lines(result(*LAYERS))
    assert told[0] == (
        "Of the 4 layers whose output splice or adapter change, the adapter brings 1 nearer to the clean base in L2 "
        "distance (2), moves 1 farther off (3), leaves 1 exactly as the splice has it (1); for 1 the data cannot tell "
        "(4,079 replaced positions)."
    )
    assert "the output of 1 layer (0)" in " ".join(told)


def test_the_last_layer_is_told_with_its_intervals():
    told = " ".join(lines(result(*LAYERS[:3])))
    assert "last layer (2) the output lies 20.0% of its norm from the base's when spliced, 15.0% when adapted" in told
    assert "L2 changes by -5 (-5.1 to -4.9)" in told
    assert "adapter alone moves that output by 1.0% of its norm" in told


def test_identical_latents_are_told_as_such_and_different_ones_by_their_size():
    same, other = lines(result(*LAYERS))[-1], lines(result(*LAYERS, identical=False))[-1]
    assert "identical bit for bit" in same
    assert "identical" not in other
    assert "0.700 (0.690 to 0.710) (Jaccard)" in other
    assert "rates correlate by 0.900" in other
    assert "L0 32.0 → 35.5, FVU 0.145 → 0.200" in other


@pytest.mark.parametrize("trained", [Trained.SAE, Trained.BOTH])
def test_of_what_was_trained_no_more_is_said_than_is_known(trained):
    found = replace(result(*LAYERS, identical=False), trained=trained)
    assert "(they were trained, or an adapter or another splice lies below)" in lines(found)[-1]
    reading = {name: replace(each, reads_original=True) for name, each in found.latents.items()}
    assert "were trained, and read the original's stream" in lines(replace(found, latents=reading))[-1]


def test_identical_latents_whose_decoder_was_trained_show_what_became_of_fvu():
    found = result(*LAYERS)
    fvu = {"base": e(0.145), "adapted": e(0.139)}
    latents = {name: replace(each, fvu=fvu) for name, each in found.latents.items()}
    told = lines(replace(found, latents=latents, trained=Trained.BOTH))[-1]
    assert "identical bit for bit (L0 32.0, FVU 0.145 → 0.139)" in told
    assert "FVU 0.145)" in lines(found)[-1]


def test_layers_are_listed_as_ranges():
    told = lines(result(*(layer(i, 20, 15, 1) for i in (3, 4, 5, 8, 9, 11))))
    assert "brings 6 nearer to the clean base in L2 distance (3–5, 8–9, 11)" in told[0]


def test_a_model_that_nothing_has_moved_is_told_so():
    assert "No layer's output differs" in lines(result(layer(0, 0, 0, 0)))[0]


def test_a_transcoder_that_reads_the_originals_stream_is_told_so_whatever_lies_below_it():
    found = result(*LAYERS)
    latents = {name: replace(each, reads_original=True) for name, each in found.latents.items()}
    told = lines(replace(found, latents=latents))[-1]
    assert "identical bit for bit" in told
    assert "since they read the original's stream (replacement mode parallel)" in told
    assert "lies below" not in told
