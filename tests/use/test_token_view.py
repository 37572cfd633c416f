"""Scores of a text, and one token under the glass, against the same by hand."""

import pytest
import torch

from saelora.use.run import LoadedRun
from saelora.use.scores import scores
from saelora.use.token_view import ablate, latents_at, next_tokens

TEXT = "bada lume re bada lume"
STEER = {3: "+40", 5: 0}


@pytest.mark.parametrize("steer", [{}, STEER])
@pytest.mark.parametrize("variant", ["original", "spliced", "adapted", "adapted_clean"])
def test_scores_are_loss_and_kl_to_the_original_as_it_was(run: LoadedRun, variant: str, steer) -> None:
    ids = run.ids(TEXT)
    found = scores(run, ids, variant, steer)
    with run.original():
        p = run.logits(ids)[0].double().log_softmax(-1)
    with run.as_variant(variant), run.steer(steer):
        q = run.logits(ids)[0].double().log_softmax(-1)
    for i, token in enumerate(ids[1:]):
        assert found.loss[i] == pytest.approx(-float(q[i, token]), abs=1e-5)
        assert found.original[i] == pytest.approx(-float(p[i, token]), abs=1e-5)
        kl = torch.nn.functional.kl_div(q[i], p[i], log_target=True, reduction="sum")
        assert found.kl[i] == pytest.approx(float(kl), abs=1e-5)
    assert len(found.kl) == len(ids) - 1
    assert bool(found.kl.any()) == (variant != "original" or bool(steer))


def test_one_token_has_no_scores(run: LoadedRun) -> None:
    assert len(scores(run, run.ids("re")[:1], "spliced").kl) == 0


@pytest.mark.parametrize("steer", [{}, STEER])
@pytest.mark.parametrize("variant", ["original", "spliced", "adapted"])
def test_ablation_is_the_spliced_model_without_one_latent_at_one_token(run: LoadedRun, variant: str, steer) -> None:
    ids = run.ids(TEXT)
    (hookpoint,) = run.hookpoints
    found = ablate(run, ids, variant, steer, 4)
    active = latents_at(run, ids, variant, steer)[hookpoint].active
    assert [each.firing for each in found.effects] == list(active[:4])
    given = torch.tensor([ids])
    with run.as_variant(variant), run.steer(steer):
        before = run.logits(given)[0, -1].double().log_softmax(-1)
    assert found.before.token_id == int(before.argmax())
    for each in found.effects:

        def without(where, latents, latent=each.firing.latent):
            changed = latents.clone()
            changed[0, len(ids) - 1, latent] = 0
            return changed

        with run.as_variant(variant), run.steer(steer), run.changing(without):
            after = run.logits(given)[0, -1].double().log_softmax(-1)
        assert each.likeliest.probability == pytest.approx(float(after[found.before.token_id].exp()), abs=1e-6)
        assert each.kl == pytest.approx(float((before.exp() * (before - after)).sum()), abs=1e-6)
        assert each.now.token_id == int(after.argmax())
    assert max(each.kl for each in found.effects) > 1e-6


def test_next_tokens_are_the_likeliest_of_the_variant(run: LoadedRun) -> None:
    ids = run.ids(TEXT)
    with run.spliced(), run.steer(STEER):
        best = run.logits(ids)[0, -1].softmax(-1).topk(3)
    found = next_tokens(run, ids, "spliced", STEER, 3)
    assert [each.token_id for each in found] == best.indices.tolist()
    assert [each.probability for each in found] == pytest.approx(best.values.tolist())


def test_a_change_of_latents_leaves_the_run_as_it_was(run: LoadedRun) -> None:
    before = run.logits(run.ids(TEXT))
    with run.changing(lambda hookpoint, latents: latents * 0):
        assert not torch.equal(run.logits(run.ids(TEXT)), before)
        assert "steered" not in repr(run)
    assert torch.equal(run.logits(run.ids(TEXT)), before)
