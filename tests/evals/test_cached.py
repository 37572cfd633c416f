"""Students measured on rows whose clean pass was made before: the figures of evaluate_branches, and what fires."""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from families import BOS, D_MODEL, EOS, N_LAYERS, VOCAB
from saelora.core.lora import lora_config
from saelora.core.splice import splice
from saelora.core.students import Student
from saelora.evals.cached import CachedEvaluator, against_start
from saelora.evals.latent_change import latent_change
from saelora.evals.loss import evaluate_branches
from saelora.evals.loss_sums import SAESums
from saelora.evals.variant import Variant
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, TinySAE

HERE = Hookpoint(1)


def some_rows() -> Tensor:
    rows = torch.randint(3, VOCAB, (5, 10), generator=torch.Generator().manual_seed(1))
    rows[:, 0], rows[2, 6] = BOS, EOS
    return rows


def with_adapter(model: nn.Module, layers) -> nn.Module:
    model = get_peft_model(model, lora_config(model, list(layers), rank=2, alpha=4.0)).double()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    return model.eval()


@pytest.mark.parametrize("layers", [(2, 3), (3,), tuple(range(N_LAYERS)), (1,)], ids=["above", "stem", "all", "below"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_student_has_the_figures_that_a_whole_evaluation_gives(fresh, family, layers):
    base, rows, sae = fresh(family), some_rows(), TinySAE(D_MODEL)
    evaluator = CachedEvaluator(base, SPARE_SPECIAL, rows, [HERE])
    with splice(base, {HERE: sae}, SPARE_SPECIAL) as spliced:
        start = evaluator.losses(base, Student(spliced))
    model = with_adapter(base, layers)
    with splice(model, {HERE: sae}, SPARE_SPECIAL) as spliced, splice(model, {HERE: sae}, SPARE_SPECIAL) as other:
        student, seen = Student(spliced, "default"), SAESums.of(SPARE_SPECIAL, rows)
        now = evaluator.losses(model, student, [other], observe=seen)
        clean = evaluator.losses(model, Student(None, "default"), [spliced, other])
        assert (spliced.observer, spliced.enabled, other.enabled) == (None, True, True)
    with splice(model, {HERE: sae}, SPARE_SPECIAL) as spliced:
        whole = evaluate_branches(model, {"": Student(spliced, "default")}, SPARE_SPECIAL, rows)[""]
    found, expected = against_start(start, now), whole.to_json()
    assert {"ce_base", "ce_sae", "ce_adapted", "kl_sae", "kl_adapted", "top1_adapted", "ce_gain"} < found.point.keys()
    assert found.n == whole.n_tokens_evaluated
    for name in found.point:
        assert found.point[name] == pytest.approx(expected[name], abs=1e-12), name
        if name in found.ci95:
            assert found.ci95[name] == pytest.approx(whole.ci95[name], abs=1e-12), name
    assert sum(clean.sums["ce"]) / sum(clean.n) == pytest.approx(whole.ce_adapted_clean, abs=1e-12)
    if min(layers) > HERE.layer:  # then the SAE reads what it read before
        (figures,), (others,) = seen.compute().values(), whole.saes.values()
        assert figures.to_json() == pytest.approx(others.to_json())


def test_measuring_runs_the_prefix_of_no_student_again(fresh):
    base, rows = fresh("llama"), some_rows()
    evaluator = CachedEvaluator(base, SPARE_SPECIAL, rows, [HERE])
    calls = []
    for i, layer in enumerate(base.model.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    with splice(base, {HERE: TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        evaluator.losses(base, Student(spliced))
    # layer 1's own hooks are called by the stand-in that returns its stored output
    assert set(calls) == {1, *range(2, N_LAYERS)}


def naive_latents(model: nn.Module, sae: TinySAE, rows: Tensor) -> Tensor:
    """Latents at HERE of every position, by a plain forward up to the splice."""
    kept = []
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.1"))
    handle = layer.register_forward_hook(lambda _m, _a, out: kept.append(out if isinstance(out, Tensor) else out[0]))
    with torch.no_grad():
        model(input_ids=rows)
    handle.remove()
    return sae.encode(kept[0])


def test_latents_that_fire_are_compared_with_those_of_the_sae_as_it_came(fresh):
    rows, before, after = some_rows(), TinySAE(D_MODEL), TinySAE(D_MODEL)
    after.b_enc.data += 0.1
    base = fresh("llama")
    mask = SPARE_SPECIAL(rows)
    old = (naive_latents(base, before, rows) != 0)[mask]
    model = with_adapter(base, (0, 2))
    new = (naive_latents(model, after, rows) != 0)[mask]
    jaccard = (old & new).sum(-1) / (old | new).sum(-1)
    with splice(model, {HERE: before}, SPARE_SPECIAL) as reference, splice(model, {HERE: after}, SPARE_SPECIAL) as own:
        found = latent_change(model, reference, Student(own, "default"), SPARE_SPECIAL, rows, batch_rows=2)[str(HERE)]
    with splice(model, {HERE: before}, SPARE_SPECIAL) as reference:
        same = latent_change(model, reference, Student(reference), SPARE_SPECIAL, rows)[str(HERE)]
    assert found.jaccard["value"] == pytest.approx(float(jaccard.double().mean()), abs=1e-6)
    assert found.l0[Variant.ADAPTED] == pytest.approx(float(new.double().sum(-1).mean()))
    assert 0 < found.jaccard["value"] < 1
    assert same.identical
    assert same.jaccard["value"] == 1
