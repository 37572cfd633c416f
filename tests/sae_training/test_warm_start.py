"""Training that goes on from a finished SAE: it begins where that one ended, and refuses what it cannot be."""

import copy
from dataclasses import replace

import pytest
import torch
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata

from families import BOS, D_MODEL, tiny
from sae_steps import METADATA, activations_of, equal, recipe, tokens
from saelora.core.splice import TokenMask
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint
from saelora.sae_training.end_to_end import EndToEnd
from saelora.sae_training.local import SAEObjective
from saelora.sae_training.warm_start import Start
from saelora.saes.loading import load_sae

MIDDLE = Hookpoint(1)
D_SAE, K = 40, 4


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(tiny("llama")).float()


def finished(folder, architecture="topk", **options):
    """A saved SAE with random weights, biases and thresholds; loaded."""
    sae_class, config_class = get_sae_class(architecture)
    options |= {"k": K} if architecture == "topk" else {}
    cfg = config_class(d_in=D_MODEL, d_sae=D_SAE, metadata=SAEMetadata(hook_name=MIDDLE.tl_name), **options)
    sae = sae_class(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1 if name.startswith("W") else 0.3))
        if architecture == "topk" and not options.get("rescale_acts_by_decoder_norm"):
            sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=-1))
    sae.save_model(folder)
    return load_sae(str(folder))


def begun(objective, model, begin, **changed):
    options = {"token_mask": TokenMask((BOS,)), "device": "cpu", "n_tokens_total": 10_000, "metadata": METADATA}
    given = {"architecture": begin.architecture, "d_sae": D_SAE, "lr": 1e-12, **changed}
    return objective(model, [MIDDLE], {"": recipe(**given)}, begin=begin, **options)


KINDS = [
    ("topk", {}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"apply_b_dec_to_input": False}),
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {}),
    ("jumprelu", {"apply_b_dec_to_input": False}),
]


@pytest.mark.parametrize("objective", [SAEObjective, EndToEnd])
@pytest.mark.parametrize(("architecture", "options"), KINDS)
def test_training_begins_with_the_reconstructions_of_its_start(model, tmp_path, architecture, options, objective):
    start = finished(tmp_path / "sae", architecture, **options)
    ours = begun(objective, model, Start.of(start))
    ours.step(tokens(0), 0.0)  # at a learning rate of nothing
    x = activations_of(model, tokens(1), 1)
    expected = start.sae(x)
    torch.testing.assert_close(ours.inference_sae(str(MIDDLE))(x), expected, rtol=1e-4, atol=1e-4)
    trainer = ours.trainers[str(MIDDLE)]
    assert trainer.scale != 1
    torch.testing.assert_close(trainer.sae(x * trainer.scale) / trainer.scale, expected, rtol=1e-4, atol=1e-4)
    assert (expected - start.sae.b_dec).abs().max() > 0.1


def test_the_seed_leaves_the_start_as_it_is_and_the_start_is_not_trained_itself(model, tmp_path):
    start = finished(tmp_path / "sae")
    before = {name: tensor.clone() for name, tensor in start.sae.state_dict().items()}
    states = []
    for seed in (0, 1):
        ours = begun(EndToEnd, model, Start.of(start), seed=seed, lr=1e-2)
        ours.step(tokens(0), 0.0)
        states.append(ours.trainers[str(MIDDLE)].state_dict())
    assert equal(*states)
    assert equal(dict(start.sae.state_dict()), before)
    assert not equal(ours.inference_sae(str(MIDDLE)).state_dict(), before)


def test_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_start(model, tmp_path):
    begin = Start.of(finished(tmp_path / "sae"))
    whole, resumed = (begun(SAEObjective, model, begin, lr=1e-2) for _ in range(2))
    whole.step(tokens(0), 0.0)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for ours in (whole, resumed):
        ours.step(tokens(1), 0.1)
    assert equal(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("gated", {}, "is a gated SAE, expected topk, standard, jumprelu"),
        ("standard", {"normalize_activations": "layer_norm"}, r"normalises activations at run time \(layer_norm\)"),
    ],
)
def test_start_that_cannot_be_trained_is_refused_in_one_line(tmp_path, architecture, options, message):
    loaded = finished(tmp_path / "sae", architecture, **options)
    with pytest.raises(InputError, match=message) as caught:
        Start.of(loaded)
    assert "\n" not in str(caught.value)


def test_topk_start_that_ranks_latents_otherwise_is_refused(tmp_path):
    loaded = finished(tmp_path / "sae")
    loaded.sae.W_dec.mul_(2)
    with pytest.raises(InputError, match="decoder rows of norms 2 to 2 and ranks latents without them"):
        Start.of(loaded)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 5}, r"layers.1.resid_post: k is 5, but the start .* has 4: leave k out"),
        ({"d_sae": 64}, "d_sae is 64, but the start .* has 40"),
        ({"architecture": "standard"}, "architecture is standard, but the start .* has topk"),
    ],
)
def test_recipe_that_contradicts_its_start_is_refused(model, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        begun(SAEObjective, model, Start.of(finished(tmp_path / "sae")), **changed)


def test_start_of_another_width_is_refused(model, tmp_path):
    begin = replace(Start.of(finished(tmp_path / "sae")), d_in=24)
    with pytest.raises(InputError, match=r"d_in is 16, but the start .* has 24: start from an SAE of this width"):
        begun(EndToEnd, model, begin)
