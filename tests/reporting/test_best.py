"""The sentence that a page begins with claims no more than its figures allow."""

from typing import Any

import pytest

from saelora.evals.loss_result import LossFigures, LossResult
from saelora.identity import About, Heldout, ModelId, SAEId
from saelora.reporting.best import best
from saelora.reporting.text import lead

MODEL = ModelId(ref="m", fingerprint="1")
ABOUT = About(model=MODEL, heldout=Heldout(fingerprint="a", n_rows=4, context=8))
OTHER = ABOUT.having(heldout=Heldout(fingerprint="b", n_rows=4, context=8))


def closing(share: float, half: float | None = 0.01, gap: float = 0.2) -> LossFigures:
    ci95 = {} if half is None else {"gap_closed": [share - half, share + half], "ce_gap": [gap - 0.05, gap + 0.05]}
    values = {"ce_base": 3.0, "ce_sae": 3.0 + gap, "ce_adapted": 3.0 + gap * (1 - share), "ce_gap": gap}
    return LossFigures(**values, gap_closed=share, ci95=ci95)


@pytest.mark.parametrize(
    ("given", "abouts", "told"),
    [
        (
            [("a", closing(0.3)), ("b", closing(0.5))],
            [ABOUT, ABOUT],
            "Of 2 runs, b wins back most of what its SAE costs: 50.0% (95 % interval 49.0% to 51.0%); next a 30.0% "
            "(95 % interval 29.0% to 31.0%).",
        ),
        ([("a", closing(0.3, 0.2)), ("b", closing(0.5, 0.2))], [ABOUT, ABOUT], "; their intervals overlap."),
        ([("a", closing(0.3)), ("b", closing(0.5))], [ABOUT, OTHER], "2 runs, whose figures do not all compare; "),
        ([("a", closing(0.3)), ("b", closing(0.5))], [ABOUT, None], "; whether they compare is unknown."),
        ([("a", closing(-0.3)), ("b", closing(-0.5))], [ABOUT, ABOUT], "none wins back anything"),
        ([("a", closing(0.01, 0.1)), ("b", closing(-0.5))], [ABOUT, ABOUT], "that cannot be told from nothing: 1.0%"),
        ([("a", closing(0.3)), ("b", closing(0.5, gap=0.01))], [ABOUT, ABOUT], "of the others no share can be stated"),
        ([("a", closing(0.3, gap=0.01))] * 2, [ABOUT, ABOUT], "None of 2 runs has a gap of which a share could be"),
    ],
)
def test_the_best_of_several_is_named_with_what_is_known_of_it(given: Any, abouts: Any, told: str) -> None:
    assert told in best(given, "runs", abouts)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (("topk", "topk"), "what its SAE costs"),
        (("skip_transcoder", "transcoder"), "what its transcoders cost"),
        (("topk", "skip_transcoder"), "what its splice costs"),
    ],
)
def test_what_costs_is_called_what_it_is(kinds: tuple[str, str], told: str) -> None:
    given = [("a", closing(0.3)), ("b", closing(0.5))]
    saes = [SAEId(hookpoint="layers.0.mlp_out", fingerprint="f", architecture=kind) for kind in kinds]
    assert told in best(given, "runs", [ABOUT.having(saes=[sae]) for sae in saes])


def result(share: float, half: float | None = 0.01, **more: Any) -> LossResult:
    values = closing(share, half, **more).to_json() | {"n_tokens_evaluated": 99_000, "saes": {}}
    rest = {f"{name}_{arm}": 0.5 for name in ("kl", "top1") for arm in ("sae", "adapted")}
    return LossResult.model_validate(values | rest)


def test_one_runs_sentence_has_the_cross_entropies_and_what_they_stand_on() -> None:
    assert lead(result(0.43, 0.05)) == (
        "The SAE costs 0.200 nats per token; the adapter wins back 43.0% of that (95 % interval 38.0% to 48.0%); cross "
        "entropy 3.200 → 3.114, original 3.000, on 99,000 predictions."
    )
    assert lead(result(0.43, None)).endswith("on 99,000 predictions, without intervals.")
    one_row = result(0.43).model_copy(update={"ci95": {"gap_closed": [0.43, 0.43], "ce_gap": [0.2, 0.2]}})
    assert lead(one_row) == lead(result(0.43, None))  # no width is no certainty
    assert "makes it worse" in lead(result(-0.2))
    assert "cannot be told from nothing" in lead(result(0.01, 0.1))
    assert "no measurable cost" in lead(result(0.5, gap=0.01))
    of_a_run = result(-9.0).model_copy(update={"n_tokens_trained": 50_000})
    assert lead(of_a_run).startswith("The run DIVERGED")


def test_only_of_a_runs_own_result_is_it_said_that_the_training_diverged() -> None:
    told = lead(result(-9.0))
    assert told.startswith(
        "Adapted it is far worse than spliced: cross entropy 5.000, spliced 3.200. If it was trained "
    )
