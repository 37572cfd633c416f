"""Likelihoods, steered and not, against plain forwards and explicit loops in float64."""

import math

import pytest
import torch
from peft import get_peft_model

import families
from families import BOS, D_MODEL, EOS
from saelora.core.head import Head
from saelora.core.lora import disabled, lora_config
from saelora.core.splice import TokenMask, splice
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering.interventions import Add, Scale
from saelora.evals.steering.likelihood import log_likelihoods, mean_log_probs, padded
from saelora.evals.steering.texts import Text
from saelora.evals.variant import Variant
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, TinySAE, hooks_in

TEXTS = [
    Text("a", (BOS, 5, 9, 33, 12, 50, 7, 60)),
    Text("b", (BOS, 44, 8, 21, 3)),
    Text("c", (BOS, 20, 61, 4, EOS, 38, 11)),
]
GENERATOR = torch.Generator().manual_seed(3)
D = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=GENERATOR, dtype=torch.float64), dim=0)
STEERINGS = [Scale(D, 1.5), Scale(D, -1.0), Add(D, 0.5, 8.0)]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def with_adapter(model, layers):
    model = get_peft_model(model, lora_config(model, list(layers), rank=2, alpha=4.0)).double().eval()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def by_hand(model, text):
    """Mean log-probability of tokens 1.. of one text, alone in its batch, one prediction after the other."""
    logits = model(input_ids=torch.tensor([text.ids])).logits[0].double()
    total = 0.0
    for t in range(1, len(text.ids)):
        scores = logits[t - 1]
        total += float(scores[text.ids[t]]) - math.log(sum(math.exp(float(s)) for s in scores))
    return total / (len(text.ids) - 1)


def steered_by_hand(x, ids, steering, spared):
    """The interventions written down once more, position by position."""
    new = x.clone()
    for t, token in enumerate(ids):
        if token in spared:
            continue
        h = x[0, t]
        along = sum(float(a) * float(b) for a, b in zip(h, D, strict=True))
        step = steering.alpha * (along if isinstance(steering, Scale) else steering.unit)
        new[0, t] = h + step * D
    return new


def hook_by_hand(module, side, text, steering, spared):
    if side == "input":

        def on_input(_m, args, kwargs):
            if args:
                return (steered_by_hand(args[0], text.ids, steering, spared), *args[1:]), kwargs
            x = steered_by_hand(kwargs["hidden_states"], text.ids, steering, spared)
            return args, {**kwargs, "hidden_states": x}

        return module.register_forward_pre_hook(on_input, with_kwargs=True)

    def on_output(_m, _a, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        new = steered_by_hand(x, text.ids, steering, spared)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    return module.register_forward_hook(on_output)


def test_likelihood_of_a_bigram_model_is_the_hand_computed_mean():
    # the hidden state of a token is its row of the table, so position t - 1 alone decides what token t gets
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
    head = Head(torch.eye(3, dtype=torch.float64))
    ids = torch.tensor([[0, 1, 2, 2], [1, 0, 0, 0]])
    attention = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = mean_log_probs(p.log()[ids], ids, attention, head)
    expected = [(math.log(0.25) + math.log(0.2) + math.log(0.4)) / 3, math.log(0.1)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


# SPEC 10.1
def test_likelihoods_equal_plain_forwards_in_every_family(model):
    hookpoint = Hookpoint(1)
    with splice(model, {hookpoint: TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        found = log_likelihoods(subject, Variant.BASE, TEXTS, hookpoint, STEERINGS, SPARE_SPECIAL)
    spared = (families.PAD, BOS, EOS)
    for i, text in enumerate(TEXTS):
        assert found[0, i].item() == pytest.approx(by_hand(model, text), rel=1e-5, abs=1e-6)
        for row, steering in enumerate(STEERINGS, 1):
            module, side = anatomy_of(model).site(hookpoint)
            handle = hook_by_hand(module, side, text, steering, spared)
            expected = by_hand(model, text)
            handle.remove()
            assert found[row, i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (found[1:] - found[0]).abs().min() > 1e-4  # each steering does something


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out", "attn_out", "attn_z"])
@pytest.mark.parametrize("layers", [(2, 3), (0, 1, 2, 3)], ids=["adapter above", "adapter everywhere"])
def test_every_site_and_placement_equals_plain_forwards(fresh, site, layers):
    model = with_adapter(fresh("gemma2"), layers)
    hookpoint = Hookpoint(1, site)
    anatomy = anatomy_of(model)
    width = anatomy.width(hookpoint)
    d = torch.zeros(width, dtype=torch.float64)
    d[3] = 1.0
    steering = Scale(d, 2.0)
    with splice(model, {hookpoint: TinySAE(width)}, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        found = {
            name: log_likelihoods(subject, name, TEXTS, hookpoint, [steering], TokenMask())
            for name in (Variant.BASE, Variant.ADAPTED_CLEAN)
        }
    module, side = anatomy.site(hookpoint)

    def tripled(x):
        x = x.clone()
        x[..., 3] *= 3
        return x

    def on_output(_m, _a, output):
        return tripled(output) if isinstance(output, torch.Tensor) else (tripled(output[0]), *output[1:])

    def on_input(_m, args, kwargs):
        if args:
            return (tripled(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": tripled(kwargs["hidden_states"])}

    def steered():
        if side == "input":
            return module.register_forward_pre_hook(on_input, with_kwargs=True)
        return module.register_forward_hook(on_output)

    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            with disabled(model):
                assert found["base"][0, i].item() == pytest.approx(by_hand(model, text), rel=1e-5, abs=1e-6)
            assert found["adapted_clean"][0, i].item() == pytest.approx(by_hand(model, text), rel=1e-5, abs=1e-6)
            handle = steered()
            assert found["adapted_clean"][1, i].item() == pytest.approx(by_hand(model, text), rel=1e-5, abs=1e-6)
            with disabled(model):
                assert found["base"][1, i].item() == pytest.approx(by_hand(model, text), rel=1e-5, abs=1e-6)
            handle.remove()
    assert (found["base"][0] - found["adapted_clean"][0]).abs().min() > 1e-4


def test_likelihood_does_not_hang_on_padding_or_company():
    model, hookpoint = families.tiny("llama"), Hookpoint(1)
    with splice(model, {hookpoint: TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        given, how = (SplicedModel(model, spliced, SPARE_SPECIAL), Variant.BASE), (hookpoint, STEERINGS, SPARE_SPECIAL)
        together = log_likelihoods(*given, TEXTS, *how)
        alone = [log_likelihoods(*given, [t], *how) for t in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone, 1), **CLOSE)


def test_padding_is_on_the_right_and_masked():
    ids, attention = padded(TEXTS[:2])
    assert ids[0].tolist() == list(TEXTS[0].ids)
    assert ids[1, :5].tolist() == list(TEXTS[1].ids)
    assert attention.tolist() == [[1] * 8, [1] * 5 + [0] * 3]


# SPEC 10.1
def test_scale_by_minus_one_takes_the_component_away_and_nothing_else():
    x = torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steered = Scale(D, -1.0).decode(x)
    assert (steered @ D).abs().max() < 1e-12
    across = torch.eye(D_MODEL, dtype=torch.float64) - torch.outer(D, D)
    torch.testing.assert_close(steered @ across, x @ across)
    torch.testing.assert_close(Scale(D, 2.0).decode(x) @ D, 3 * (x @ D))


# SPEC 10.1
def test_addition_moves_by_alpha_units_along_d_at_every_position():
    x = torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = Add(D, 0.25, 12.0).decode(x) - x
    torch.testing.assert_close(moved, (3.0 * D).expand_as(x))


def test_half_precision_activations_are_steered_in_float32():
    x = torch.full((1, 1, D_MODEL), 300.0, dtype=torch.bfloat16)
    assert Scale(D.float(), 1.0).decode(x).dtype == torch.float32
    assert Add(D.float(), 1.0, 1.0).decode(x).dtype == torch.float32


def test_steering_leaves_the_model_as_it_was_also_after_an_error(fresh):
    model = with_adapter(fresh("llama"), (2, 3)).train()
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:

        def state():
            layers = list(anatomy_of(model).layers)
            return [m.training for m in model.modules()], hooks_in(model), spliced.enabled, layers

        before = state()
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        log_likelihoods(subject, Variant.ADAPTED_CLEAN, TEXTS, Hookpoint(1), STEERINGS, SPARE_SPECIAL)
        assert state() == before
        broken = [Scale(torch.ones(D_MODEL + 1), 1.0)]
        with pytest.raises(RuntimeError):
            log_likelihoods(subject, Variant.BASE, TEXTS, Hookpoint(1), broken, SPARE_SPECIAL)
        assert state() == before
