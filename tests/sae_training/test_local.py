"""SAE training on tiny random models: what is learned, what is saved, what never enters, what resumes."""

import copy
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_steps import (
    BOS,
    CONTEXT,
    D_MODEL,
    FIRST,
    METADATA,
    MIDDLE,
    NOT_BOS,
    activations_of,
    assert_figures_are_plain,
    equal,
    recipe,
    tokens,
)
from saelora.core.splice import TokenMask
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint
from saelora.sae_training.local import SAEObjective
from saelora.sae_training.recipe import ARCHITECTURES, TRANSCODERS, SAERecipe, variant_recipes
from saelora.saes.saving import save_sae

SAES = [name for name in ARCHITECTURES if name not in TRANSCODERS]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=D_MODEL, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=BOS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def objective(model, hookpoints=(MIDDLE,), n_tokens_total=10_000, token_mask=NOT_BOS, recipes=None, **changed):
    return SAEObjective(
        model, list(hookpoints), recipes or {"": recipe(**changed)}, token_mask=token_mask, device="cpu",
        n_tokens_total=n_tokens_total, metadata=METADATA,
    )  # fmt: skip


def train(sae_objective, seeds, total=20):
    return [{k: v.clone() for k, v in sae_objective.step(tokens(s), s / total).items()} for s in seeds]


def weights(sae_objective, name=MIDDLE):
    return sae_objective.trainers[str(name)].sae.state_dict()


@pytest.mark.parametrize("architecture", SAES)
@pytest.mark.parametrize("init", ["data", "random"])
def test_loss_falls(model, architecture, init):
    history = train(objective(model, architecture=architecture, init=init, lr=1e-2), range(8), total=8)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["fvu"] < 0.8 * history[0]["fvu"]


@pytest.mark.parametrize("architecture", SAES)
def test_saved_sae_loads_in_saelens_with_equal_reconstruction_of_raw_activations(model, architecture, tmp_path):
    from sae_lens import SAE

    ours = objective(model, architecture=architecture)
    history = train(ours, range(10))
    save_sae(ours.inference_sae(str(MIDDLE)), tmp_path / "sae")
    loaded = SAE.load_from_disk(tmp_path / "sae")
    x = activations_of(model, tokens(10), 1)
    assert torch.equal(loaded(x), ours.inference_sae(str(MIDDLE))(x))
    fvu = (loaded(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert fvu < 1.3 * history[-1]["fvu"]  # on raw activations it is as good as it was in training
    torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(4 * D_MODEL))
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["normalize_activations"] == "none"
    assert cfg["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert cfg["metadata"]["model_name"] == "tiny"
    assert cfg["metadata"]["prepend_bos"] is True
    assert cfg["metadata"]["saelora"]["recipe"]["architecture"] == architecture


@pytest.mark.parametrize("architecture", ["topk", "standard", "gated"])
def test_inference_sae_equals_training_sae_on_scaled_activations(model, architecture):
    ours = objective(model, architecture=architecture)
    train(ours, range(3))
    trainer = ours.trainers[str(MIDDLE)]
    x = activations_of(model, tokens(3), 1)
    with torch.no_grad():
        expected = trainer.sae(x * trainer.scale) / trainer.scale
    torch.testing.assert_close(ours.inference_sae(str(MIDDLE))(x), expected, rtol=1e-4, atol=1e-5)


def test_layers_above_the_hookpoint_are_not_run(model):
    runs = []
    handles = [m.register_forward_hook(lambda *_, i=i: runs.append(i)) for i, m in enumerate(model.model.layers)]
    try:
        train(objective(model), [0])
    finally:
        for handle in handles:
            handle.remove()
    assert set(runs) == {0, 1}


# SPEC 5.4
def test_bos_activations_never_enter(model):
    def poison(module, args, output):
        output = output.clone()
        output[:, 0] = 1e6
        return output

    clean = objective(model)
    train(clean, range(3))
    handle = model.model.layers[1].register_forward_hook(poison)
    try:
        poisoned = objective(model)
        train(poisoned, range(3))
        unmasked = objective(model, token_mask=TokenMask())
        train(unmasked, range(3))
    finally:
        handle.remove()
    assert equal(weights(clean), weights(poisoned))
    assert not equal(weights(clean), weights(unmasked))


@pytest.mark.parametrize("architecture", SAES)
def test_resume_matches_uninterrupted_run_bitwise(model, architecture, tmp_path):
    whole = objective(model, architecture=architecture, dead_after_tokens=300, passes=2)
    train(whole, range(3))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = train(whole, range(3, 6))
    resumed = objective(model, architecture=architecture, dead_after_tokens=300, passes=2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal(train(resumed, range(3, 6)), expected)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_several_hookpoints_in_one_pass_equal_separate_runs(model):
    together = objective(model, [MIDDLE, FIRST])
    metrics = train(together, range(3))[-1]
    for hookpoint in (MIDDLE, FIRST):
        alone = objective(model, [hookpoint])
        fvu = train(alone, range(3))[-1]["fvu"]
        assert equal(weights(alone, hookpoint), weights(together, hookpoint))
        assert metrics[f"fvu/{hookpoint}"] == fvu


VARIANTS = {
    "k=2": {"k": 2},
    "passes=2": {"passes": 2},
    "seed=7": {"seed": 7},
    "d_sae=40,batch_tokens=100": {"d_sae": 40, "batch_tokens": 100},
    **{name: {"architecture": name} for name in SAES},
}


# SPEC 11.1
def test_variants_in_one_pass_equal_separate_runs_bitwise(model):
    together = objective(model, [MIDDLE, FIRST], recipes={name: recipe(**given) for name, given in VARIANTS.items()})
    metrics = train(together, range(2))[-1]
    for i, (variant, given) in enumerate(VARIANTS.items()):
        hookpoint = (MIDDLE, FIRST)[i % 2]
        name = f"{hookpoint}/{variant}"
        alone = objective(model, [hookpoint], **given)
        own = train(alone, range(2))[-1]
        assert equal(alone.trainers[str(hookpoint)].state_dict(), together.trainers[name].state_dict())
        assert all(
            metrics[f"{key}/{name}"] == own[key]
            for key in ("mse", "fvu", "relative_error", "top_variance", "l0", "dead_frac")
        )
        assert equal(alone.inference_sae(str(hookpoint)).state_dict(), together.inference_sae(name).state_dict())


def test_fvu_and_loss_of_several_saes_are_their_means(model):
    recipes = {"k=2": recipe(k=2), "k=8": recipe(k=8)}
    metrics = train(objective(model, recipes=recipes), range(2))[-1]
    alone = [train(objective(model, k=k), range(2))[-1] for k in (2, 8)]
    assert alone[0]["fvu"] != alone[1]["fvu"]
    for key in ("loss", "fvu", "relative_error", "top_variance"):
        torch.testing.assert_close(metrics[key], (alone[0][key] + alone[1][key]) / 2)


def test_model_is_run_once_for_all_variants(model):
    runs = []
    handle = model.model.layers[1].register_forward_hook(lambda *_: runs.append(1))
    try:
        train(objective(model, recipes={"k=2": recipe(k=2), "k=8": recipe(k=8), "k=9": recipe(k=9)}), [0])
    finally:
        handle.remove()
    assert len(runs) == 16 // 4  # 16 rows, 4 at a time


def test_resume_of_variants_matches_uninterrupted_run_bitwise(model, tmp_path):
    recipes = {"k=2": recipe(k=2, passes=2), "batchtopk": recipe(architecture="batchtopk")}
    whole = objective(model, recipes=recipes)
    train(whole, range(2))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = train(whole, range(2, 4))
    resumed = objective(model, recipes=recipes)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal(train(resumed, range(2, 4)), expected)
    assert equal(resumed.state_dict(), whole.state_dict())
    with pytest.raises(InputError, match="this run trains"):
        objective(model, recipes={"k=2": recipes["k=2"]}).load_state_dict(whole.state_dict())


KINDS = {"architecture": str, "k": int, "expansion": int, "d_sae": int | None, "lr": float, "batch_tokens": int}


def test_variant_text_overrides_the_common_recipe():
    common = SAERecipe(d_sae=99, k=4, lr=1e-2)
    found = variant_recipes(["k=16", " d_sae = 50, lr=1e-4 ", "batch-tokens=7", "expansion=2"], common, KINDS)
    assert found == {
        "k=16": SAERecipe(d_sae=99, k=16, lr=1e-2),
        "d_sae=50,lr=1e-4": SAERecipe(d_sae=50, k=4, lr=1e-4),
        "batch-tokens=7": SAERecipe(d_sae=99, k=4, lr=1e-2, batch_tokens=7),
        "expansion=2": SAERecipe(expansion=2, k=4, lr=1e-2),  # the common d_sae does not undo it
    }
    assert variant_recipes([], common, KINDS) == {"": common}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["kk=16"], "unknown key 'kk'; did you mean 'k'"),
        (["init=random"], "unknown key 'init'"),
        (["batch_token=9"], "did you mean 'batch_tokens'"),
        (["k=many"], "k: got 'many', expected a whole number"),
        (["k=0"], "variant 'k=0': SAE recipe: k is 0"),
        (["k"], "got 'k', expected key=value"),
        (["k="], "expected key=value"),
        (["k=8,"], "expected key=value"),
        ([""], "expected key=value"),
        (["k=8,k=9"], "given twice"),
        (["k=8", "k = 8"], "same SAE as variant 'k=8'"),
        (["k=8,lr=1e-3", "lr=0.001,k=8"], "same SAE"),
        (["architecture=../../up"], "expected key=value"),
        (["k=" + "0" * 300 + "8"], "at most 200"),
    ],
)
def test_bad_variant_is_refused_in_one_line(texts, message):
    with pytest.raises(InputError, match=message) as caught:
        variant_recipes(texts, SAERecipe(), KINDS)
    assert "\n" not in str(caught.value)


def test_variant_that_does_not_fit_the_model_is_named(model):
    with pytest.raises(InputError, match=r"layers.1.resid_post/k=100: .*d_sae is 64"):
        objective(model, recipes={"k=2": recipe(k=2), "k=100": recipe(k=100)})


def test_building_an_objective_leaves_the_random_state_alone(model):
    before = torch.get_rng_state()
    train(objective(model), [0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["topk", "standard", "gated"])
def test_dead_frac_counts_the_latents_that_never_fired_and_no_others(model, architecture):
    n_tokens = 16 * (CONTEXT - 1)
    ours = objective(model, architecture=architecture, dead_after_tokens=2 * n_tokens - 1, aux_coefficient=0, lr=1e-12)
    train(ours, [0])
    trainer = ours.trainers[str(MIDDLE)]
    bias = trainer.sae.b_gate if architecture == "gated" else trainer.sae.b_enc
    with torch.no_grad():
        bias[:3] = -1e4  # these cannot fire
    trainer.tokens_silent_S.zero_()
    assert train(ours, [1])[0]["dead_frac"] == 0  # not silent for long enough yet
    dead_frac = train(ours, [2])[0]["dead_frac"]
    x = torch.cat([activations_of(model, tokens(seed), 1) for seed in (1, 2)])
    never_fired = (ours.inference_sae(str(MIDDLE)).encode(x) > 0).sum(dim=0) == 0
    assert 3 <= never_fired.sum() < len(never_fired)
    assert torch.equal(trainer.dead_S, never_fired)
    assert dead_frac == never_fired.float().mean()


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_metrics_equal_a_naive_reference_in_float64(model, architecture):
    ours = objective(model, architecture=architecture, lr=1e-12)
    train(ours, [0])
    metrics = train(ours, [1])[0]
    x = activations_of(model, tokens(1), 1).double()
    sae = ours.inference_sae(str(MIDDLE)).to(torch.float64)
    assert_figures_are_plain(metrics, sae, x)


def test_every_token_is_seen_once_per_pass_and_measured_in_the_first(model):
    ours = objective(model, passes=3, batch_tokens=100, lr=1e-12)
    metrics = train(ours, [0])[0]
    once = train(objective(model, batch_tokens=100, lr=1e-12), [0])[0]
    assert equal(metrics, once)
    assert ours.n_tokens == 16 * (CONTEXT - 1)
    assert ours.trainers[str(MIDDLE)].n_steps == 3 * 4  # 368 tokens in batches of at most 100


def test_learning_rate_rises_and_falls_linearly_with_the_share_of_tokens_done():
    schedule = SAERecipe(lr=1.0, warmup=0.1, decay=0.2)
    assert [schedule.lr_at(p) for p in (0, 0.05, 0.1, 0.5, 0.8, 1)] == pytest.approx([0, 0.5, 1, 1, 1, 0], abs=1e-12)
    assert schedule.lr_at(0.9) == pytest.approx(0.5)
    assert SAERecipe(lr=1.0, warmup=0.0, decay=0.0).lr_at(0) == 1


def test_sparsity_coefficient_warms_up(model):
    cold, warm = (
        objective(model, architecture="standard", sparsity_warmup=1.0),
        objective(model, architecture="standard"),
    )
    assert train(cold, [0])[0]["loss"] < train(warm, [0])[0]["loss"]


def test_an_untrained_sae_is_refused(model):
    with pytest.raises(InputError, match="not been trained"):
        objective(model).inference_sae(str(MIDDLE))


def test_export_leaves_training_as_it_was(model):
    ours = objective(model, architecture="batchtopk")
    train(ours, range(2))
    before = copy.deepcopy(ours.state_dict())
    ours.inference_sae(str(MIDDLE))
    assert equal(before, ours.state_dict())
    train(ours, [2])


@pytest.mark.usefixtures("unchecked")  # the check of types would refuse it first
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "topp"}, "architecture 'topp'"),
        ({"k": 0}, "k is 0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"k": 100}, "d_sae is 64"),
        ({"architecture": "matryoshka", "matryoshka_widths": (32, 16)}, "expected increasing widths"),
    ],
)
def test_bad_recipe_is_refused_in_one_line(model, changed, message):
    with pytest.raises(InputError, match=message) as caught:
        objective(model, **changed)
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused(model):
    with pytest.raises(InputError, match="no two alike"):
        objective(model, [MIDDLE, MIDDLE])
    with pytest.raises(InputError, match="no recipe"):
        SAEObjective(model, [MIDDLE], {}, token_mask=NOT_BOS, device="cpu", n_tokens_total=1, metadata=METADATA)
    with pytest.raises(InputError, match="exempts all"):
        train(objective(model, token_mask=TokenMask(tuple(range(64)))), [0])
    with pytest.raises(InputError, match="this run trains"):
        objective(model, [FIRST]).load_state_dict(objective(model).state_dict())


def test_attn_z_sae_is_saved_with_saelens_head_reshaping(model, tmp_path):
    from sae_lens import SAE

    z = Hookpoint(0, "attn_z")
    ours = objective(model, [z])
    train(ours, range(2))
    save_sae(ours.inference_sae(str(z)), tmp_path / "sae")
    x = torch.randn(3, 5, 2, D_MODEL // 2)
    assert SAE.load_from_disk(tmp_path / "sae")(x).shape == x.shape
