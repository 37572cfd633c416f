"""Tuning, comparison and pooling against hand numbers, scipy and plain generation."""

import copy
import math

import pytest
import torch
from peft import get_peft_model
from scipy import stats

import families
from families import BOS, D_MODEL, EOS, PAD
from saelora.core.lora import lora_config
from saelora.core.splice import splice
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering import effects as steering
from saelora.evals.steering.interventions import direction
from saelora.evals.steering.texts import Text
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, SpecialTokens, TinySAE

HOOKPOINT = Hookpoint(1)
ALPHAS = {"scale": (0.5, -1.0, 3.0), "add": (0.3, 2.0)}


class Numbers(SpecialTokens):
    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i in (PAD, BOS, EOS)))


def texts(seed, n, length=9):
    ids = torch.randint(3, 64, (n, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Text(f"{seed} {i}", (BOS, *row)) for i, row in enumerate(ids)]


def case_of(sae, latent=3, test_seed=20):
    d, norm = direction(sae, latent, Hookpoint(1))
    tuning = {"positives": texts(1, 4), "negatives": texts(2, 3)}
    test = {"positives": texts(test_seed, 5), "negatives": texts(test_seed + 1, 4)}
    return steering.Case(latent, d, 6.0 * norm, tuning, test)


@pytest.fixture
def setup(fresh):
    model = fresh("llama")
    model = get_peft_model(model, lora_config(model, [2, 3], rank=2, alpha=4.0)).double().eval()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    with splice(model, {HOOKPOINT: TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        yield steering.SteeringSetup(SplicedModel(model, spliced, SPARE_SPECIAL), HOOKPOINT, SPARE_SPECIAL)


def log_prob(model, text):
    logits = model(input_ids=torch.tensor([text.ids])).logits[0].detach().log_softmax(-1)
    return sum(float(logits[t - 1, text.ids[t]]) for t in range(1, len(text.ids))) / (len(text.ids) - 1)


def by_hand(setup, case, method, alpha, adapted, text):
    """Un-steered and steered log-probability of one text by plain forwards with a hook."""
    model, spared = setup.subject.model, torch.tensor([token in (PAD, BOS, EOS) for token in text.ids])

    def hook(_m, _a, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        step = alpha * (x @ case.d)[..., None] * case.d if method == "scale" else alpha * case.unit * case.d
        new = torch.where(spared[None, :, None], x, x + step)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    setup.subject.spliced.enabled = False
    if not adapted:
        model.base_model.disable_adapter_layers()
    before = log_prob(model, text)
    handle = anatomy_of(model).layers[1].register_forward_hook(hook)
    after = log_prob(model, text)
    handle.remove()
    model.base_model.enable_adapter_layers()
    setup.subject.spliced.enabled = True
    return before, after


def tuned_by(*args):
    return to_json(steering.tune(*args))


def paired(*args):
    return to_json(steering.paired(*args))


def measured(setup, cases, alphas):
    effects = steering.measure(setup, cases, alphas)
    latents = [{"latent": case.latent, "methods": each} for case, each in zip(cases, effects, strict=True)]
    return to_json({"latents": latents, "pooled": steering.pool(effects)})


def close(estimate, values):
    mean = sum(values) / len(values)
    low, high = stats.t.interval(0.9, len(values) - 1, loc=mean, scale=stats.sem(values))
    assert [estimate["value"], estimate["low"], estimate["high"]] == pytest.approx(
        [mean, low, high], rel=1e-4, abs=1e-7
    )


# SPEC 10.2
def test_tuning_takes_the_alpha_with_the_best_gain_less_loss_of_the_original_model(setup):
    case = case_of(TinySAE(D_MODEL))
    tuned = tuned_by(setup, case, ALPHAS)
    for method, grid in ALPHAS.items():
        scores = []
        for alpha in grid:
            change = {}
            for side in steering.SIDES:
                pairs = [by_hand(setup, case, method, alpha, False, text) for text in case.tuning[side]]
                change[side] = sum(after - before for before, after in pairs) / len(pairs)
            scores.append(change["positives"] + min(0.0, change["negatives"]))
        assert [entry["alpha"] for entry in tuned[method]["tuning"]] == list(grid)
        assert [entry["score"] for entry in tuned[method]["tuning"]] == pytest.approx(scores, rel=1e-5, abs=1e-7)
        assert tuned[method]["alpha"] == grid[scores.index(max(scores))]


def test_tuning_looks_neither_at_test_texts_nor_at_the_adapter(setup):
    sae = TinySAE(D_MODEL)
    before = measured(setup, [case_of(sae)], ALPHAS)["latents"][0]["methods"]
    other = measured(setup, [case_of(sae, test_seed=50)], ALPHAS)["latents"][0]["methods"]
    for name, parameter in setup.subject.model.named_parameters():
        if "lora_B" in name:
            parameter.data *= -2
    turned = measured(setup, [case_of(sae)], ALPHAS)["latents"][0]["methods"]
    for method in ALPHAS:
        tuned = [(found[method]["alpha"], found[method]["tuning"]) for found in (before, other, turned)]
        assert tuned[0] == tuned[1] == tuned[2]
        assert before[method]["positives"] != other[method]["positives"]
        assert before[method]["positives"]["base"] == turned[method]["positives"]["base"]
        assert before[method]["positives"]["adapted"] != turned[method]["positives"]["adapted"]


# SPEC 6.3
def test_comparison_is_paired_by_text_and_has_students_interval(setup):
    case = case_of(TinySAE(D_MODEL))
    found = measured(setup, [case], ALPHAS)
    assert steering.LEVEL == 0.9
    for method in ALPHAS:
        entry = found["latents"][0]["methods"][method]
        for side in steering.SIDES:
            runs = {
                adapted: [by_hand(setup, case, method, entry["alpha"], adapted, text) for text in case.test[side]]
                for adapted in (False, True)
            }
            change = {adapted: [after - before for before, after in pairs] for adapted, pairs in runs.items()}
            spread = {a: max(b for b, _ in pairs) - min(b for b, _ in pairs) for a, pairs in runs.items()}
            close(entry[side]["base"], change[False])
            close(entry[side]["adapted"], change[True])
            close(entry[side]["difference_raw"], [a - b for a, b in zip(change[True], change[False], strict=True)])
            scaled = {a: [100 * c / spread[a] for c in change[a]] for a in change}
            close(
                entry[side]["difference_normalised"],
                [a - b for a, b in zip(scaled[True], scaled[False], strict=True)],
            )


def test_normalised_values_are_those_of_the_papers_formula():
    before, after = torch.tensor([-4.0, -2.0, -3.0]), torch.tensor([-3.0, -2.5, -3.0])
    other, moved = torch.tensor([-1.0, -5.0, -2.0]), torch.tensor([0.0, -5.0, -2.0])
    found = paired((before, after), (other, moved))
    scale = [100 * (x + 4) / 2 for x in (-4.0, -2.0, -3.0, -3.0, -2.5, -3.0)]
    scale_other = [100 * (x + 5) / 4 for x in (-1.0, -5.0, -2.0, 0.0, -5.0, -2.0)]
    differences = [(scale_other[i + 3] - scale_other[i]) - (scale[i + 3] - scale[i]) for i in range(3)]
    close(found["difference_normalised"], differences)


def test_texts_that_are_all_alike_have_no_normalised_difference():
    same = torch.full((3,), -2.0)
    found = paired((same, same + 1), (same, same + 2))
    assert found["difference_normalised"] == {"value": None, "low": None, "high": None}
    assert found["difference_raw"]["value"] == pytest.approx(1.0)


def test_a_model_that_steering_destroys_gives_none_and_its_alpha_is_not_chosen(setup):
    case = case_of(TinySAE(D_MODEL))
    tuned = tuned_by(setup, case, {"add": (math.inf, 0.3)})
    assert tuned["add"]["alpha"] == 0.3
    assert tuned["add"]["tuning"][0]["score"] is None
    nothing = torch.full((3,), math.nan)
    assert paired((nothing, nothing), (nothing, nothing))["base"]["value"] is None


# SPEC 6.3
def test_pooling_takes_each_latents_mean_as_one_observation(setup):
    sae = TinySAE(D_MODEL)
    cases = [case_of(sae, latent, 20 + 2 * latent) for latent in (0, 3, 7)]
    found = measured(setup, cases, ALPHAS)
    assert [latent["latent"] for latent in found["latents"]] == [0, 3, 7]
    for method in ALPHAS:
        for side in steering.SIDES:
            for name in ("difference_raw", "difference_normalised"):
                means = [latent["methods"][method][side][name]["value"] for latent in found["latents"]]
                close(found["pooled"][method][side][name], means)


def test_an_adapter_that_does_nothing_makes_no_difference(setup):
    for name, parameter in setup.subject.model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0
    found = measured(setup, [case_of(TinySAE(D_MODEL))], ALPHAS)
    difference = found["pooled"]["scale"]["positives"]["difference_raw"]["value"]
    assert difference == pytest.approx(0.0, abs=1e-9)
    assert abs(found["pooled"]["scale"]["positives"]["base"]["value"]) > 1e-4


def test_progress_adds_up_to_what_was_announced(setup):
    case, seen = case_of(TinySAE(D_MODEL)), []
    counting = copy.copy(setup)
    object.__setattr__(counting, "progress", seen.append)
    measured(counting, [case], ALPHAS)
    assert sum(seen) == case.n_tokens(5, 2)


def test_samples_are_greedy_continuations_of_each_model(setup):
    case = case_of(TinySAE(D_MODEL))
    found = steering.measure(setup, [case], {"add": (4.0,)})
    prompts = torch.tensor([[BOS, 44, 8, 21, 3], [BOS, 5, 9, 33, 12]])
    (samples,) = to_json(steering.samples(setup, Numbers(), prompts, [case], found, 6))
    assert [sample["prompt"] for sample in samples] == ["44 8 21 3", "5 9 33 12"]
    assert all(sample["method"] == "add" and sample["alpha"] == 4.0 for sample in samples)

    def greedy(row, adapted, steered):
        ids = row.tolist()
        for _ in range(6):  # without a key-value cache: the whole text anew for each token
            spared = torch.tensor([token in (PAD, BOS, EOS) for token in ids])

            def hook(_m, _a, x, spared=spared):
                x = x if isinstance(x, torch.Tensor) else x[0]
                return torch.where(spared[None, :, None], x, x + 4.0 * case.unit * case.d)

            handle = anatomy_of(setup.subject.model).layers[1].register_forward_hook(hook) if steered else None
            ids.append(int(setup.subject.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if handle:
                handle.remove()
        return Numbers().decode(ids[len(row) :], True)

    setup.subject.spliced.enabled = False
    for sample, row in zip(samples, prompts, strict=True):
        for name, adapted in (("base", False), ("adapted", True)):
            if not adapted:
                setup.subject.model.base_model.disable_adapter_layers()
            assert sample[name] == greedy(row, adapted, False)
            assert sample[f"{name}_steered"] == greedy(row, adapted, True)
            setup.subject.model.base_model.enable_adapter_layers()
    assert any(sample["base"] != sample["base_steered"] for sample in samples)


def test_direction_is_the_unit_decoder_row():
    sae = TinySAE(D_MODEL)
    d, norm = direction(sae, 5, Hookpoint(1))
    assert float(d.norm()) == pytest.approx(1.0)
    torch.testing.assert_close(d * norm, sae.W_dec[5].data)
    assert len(d) == families.D_MODEL
