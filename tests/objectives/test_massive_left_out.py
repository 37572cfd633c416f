"""Massive tokens are left out of every way to train an SAE: as if their ids had been exempt."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest

from families import BOS, D_MODEL, tiny
from sae_steps import METADATA, equal, recipe, tokens
from saelora.core.massive import Massive
from saelora.core.splice import TokenMask, splice
from saelora.core.spread import FIGURES
from saelora.evals.loss import evaluate_loss
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch, DistillRecipe
from saelora.objectives.distill import Distill
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.sae_training.end_to_end import EndToEnd
from saelora.sae_training.local import SAEObjective
from trainable_saes import made, moved

SINK = 7
HERE = Hookpoint(1)
BY_ID = TokenMask((BOS, SINK))
BY_NORM = TokenMask((BOS,), massive=Massive(10.0, ((HERE, 100.0), (Hookpoint(2), 100.0))))
NOBODY = TokenMask((BOS,))


@pytest.fixture(scope="module")
def model() -> Any:
    """A llama in which one token is a sink."""
    model = copy.deepcopy(tiny("llama")).float()
    model.get_input_embeddings().weight.data[SINK] *= 1000
    return model


def trained(kind: type, model: Any, mask: TokenMask, **options: Any) -> tuple[dict[str, Any], Any]:
    ours = kind(
        model, [HERE, Hookpoint(2)], {"": recipe(batch_tokens=200)}, token_mask=mask, device="cpu",
        n_tokens_total=10_000, metadata=METADATA, **options,
    )  # fmt: skip
    figures = [{name: float(value) for name, value in ours.step(tokens(seed), 0.1).items()} for seed in range(2)][-1]
    return figures, {name: ours.inference_sae(name).state_dict() for name in ours.recipes}


@pytest.mark.parametrize(
    ("kind", "options"), [(SAEObjective, {}), (EndToEnd, {}), (EndToEnd, {"downstream": 1.0})],
    ids=["local", "e2e", "e2e+downstream"],
)  # fmt: skip
# SPEC 5.4
def test_training_an_sae_sees_none_of_them(model: Any, kind: type, options: dict[str, Any]) -> None:
    figures, weights = trained(kind, model, BY_NORM, **options)
    expected_figures, expected = trained(kind, model, BY_ID, **options)
    assert figures == expected_figures
    assert all(equal(weights[name], expected[name]) for name in expected)
    with_them, _ = trained(kind, model, NOBODY, **options)
    assert with_them[f"top_variance/{HERE}"] > 2 * figures[f"top_variance/{HERE}"]


@pytest.mark.parametrize("objective", ["kl", "kl+mse"])
def test_finetuning_an_sae_sees_none_of_them(model: Any, objective: str) -> None:
    found, model = {}, copy.deepcopy(model).double()
    for name, mask in (("norm", BY_NORM), ("id", BY_ID), ("nobody", NOBODY)):
        sae = moved(TrainableSAE(made("standard", d_in=D_MODEL), "sae", rank=1, seed=0))
        with ExitStack() as stack:
            spliced = stack.enter_context(splice(model, {HERE: sae}, mask))
            distill = Distill(model, [Branch("one", spliced, DistillRecipe(objective=objective))], n_rows=32)
            steps = [distill.step(tokens(seed), seed / 2) for seed in range(2)]
        figures = [{key: float(value) for key, value in step.items()} for step in steps]
        found[name] = figures, {n: p.detach().clone() for n, p in sae.named_parameters()}
    assert found["norm"][0] == found["id"][0]
    assert equal(found["norm"][1], found["id"][1])
    assert not equal(found["norm"][1], found["nobody"][1])


# SPEC 5.4
def test_the_saes_own_figures_are_of_the_others_and_predictions_are_the_same(model: Any) -> None:
    rows, sae, model = tokens(3), made("standard", d_in=D_MODEL), copy.deepcopy(model).double()
    found, by_id, nobody = (evaluate_loss(model, {HERE: sae}, mask, rows) for mask in (BY_NORM, BY_ID, NOBODY))
    own, theirs = (each["saes"][str(HERE)] for each in (found, by_id))
    for figure in ("fvu", "l0", "dead_frac", *FIGURES):
        assert own[figure] == theirs[figure], figure
    n_sinks = int((rows == SINK).sum())
    assert (own["n_massive"], own["n_positions"]) == (n_sinks, int((rows != BOS).sum()))
    assert own["massive_limit"] == 100.0
    assert "n_massive" not in nobody["saes"][str(HERE)]
    assert n_sinks > 0
    assert found["n_tokens_evaluated"] == nobody["n_tokens_evaluated"] > by_id["n_tokens_evaluated"]
    assert found["ce_base"] == nobody["ce_base"]
    assert found["ce_sae"] != nobody["ce_sae"]
