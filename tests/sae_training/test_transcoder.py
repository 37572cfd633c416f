"""Training transcoders on tiny random models: what is learned, what is saved, what never enters, what resumes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_steps import BOS, D_MODEL, METADATA, NOT_BOS, equal, recipe, tokens
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, ReadPoint
from saelora.sae_training.end_to_end import EndToEnd
from saelora.sae_training.local import SAEObjective
from saelora.sae_training.recipe import TRANSCODERS
from saelora.sae_training.transcoder import TrainingTranscoder, least_of
from saelora.saes.loading import load_sae
from saelora.saes.saving import save_for_circuit_tracer, save_sae

LAYERS = [Hookpoint(layer, "mlp_out") for layer in range(3)]
MIDDLE = LAYERS[1]
D_SAE = 64


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=D_MODEL, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=BOS, initializer_range=0.3,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    for layer in made.model.layers:  # so that input and norm's output differ
        torch.nn.init.uniform_(layer.post_attention_layernorm.weight, 0.5, 2.0)
    return made


def objective(model, hookpoints=(MIDDLE,), kind=SAEObjective, recipes=None, **changed):
    changed = {"architecture": "transcoder", "d_sae": D_SAE, **changed}
    return kind(
        model, list(hookpoints), recipes or {"": recipe(**changed)}, token_mask=NOT_BOS, device="cpu",
        n_tokens_total=10_000, metadata=METADATA,
    )  # fmt: skip


def train(made, seeds, total=20):
    return [{k: v.clone() for k, v in made.step(tokens(s), s / total).items()} for s in seeds]


def io_of(model, rows, layer=1):
    """What the MLP reads and what it adds, written out: [n_kept, D_MODEL] each."""
    found = {}
    mlp = model.model.layers[layer].mlp
    handle = mlp.register_forward_hook(lambda _m, args, out: found.update(x=args[0], y=out))
    with torch.no_grad():
        model(rows)
    handle.remove()
    return found["x"][rows != BOS], found["y"][rows != BOS]


def fvu(transcoder, x, y):
    return float((transcoder(x) - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum())


def dense(transcoder: TrainingTranscoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same written out with dense products: output, latents in the units of what they add."""
    pre = x @ transcoder.W_enc + transcoder.b_enc
    norm = transcoder.W_dec.detach().norm(dim=-1)
    ranked = (pre * norm).relu()
    kept = torch.zeros_like(ranked).flatten()
    best = ranked.flatten().topk(transcoder.cfg.k * len(x)).indices
    kept[best] = 1.0
    acts = pre.relu() * kept.view_as(pre)
    skip = 0 if transcoder.W_skip is None else x @ transcoder.W_skip.T
    return acts @ transcoder.W_dec + transcoder.b_dec + skip, acts * norm


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_step_has_the_values_and_gradients_of_dense_products(architecture):
    torch.manual_seed(0)
    ours = TrainingTranscoder(recipe(architecture=architecture, d_sae=D_SAE, aux_coefficient=0.0), 16, 16).double()
    with torch.no_grad():
        ours.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        ours.b_enc.normal_()
        if ours.W_skip is not None:
            ours.W_skip.normal_()
    x, y = torch.randn(2, 50, 16, dtype=torch.float64).unbind()
    output = ours.training_forward_pass(x, y)
    made, acts = dense(ours, x)
    torch.testing.assert_close(output.sae_out, made)
    torch.testing.assert_close(output.feature_acts.to_dense(), acts.detach())
    assert int((acts > 0).sum()) == 50 * ours.cfg.k
    weights = {name: weight for name, weight in ours.named_parameters() if weight is not None}
    found = torch.autograd.grad(output.loss, list(weights.values()))
    expected = torch.autograd.grad((made - y).pow(2).sum(-1).mean(), list(weights.values()))
    for name, one, other in zip(weights, found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("guess", [0.0, 0.4, 0.99])
def test_the_least_of_the_chosen_does_not_depend_on_the_guess(guess):
    x = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    assert least_of(x, 100, guess) == x.flatten().sort(descending=True).values[99]
    assert least_of(-x, 100, guess) == 0


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_the_saved_transcoder_predicts_the_mlps_output_from_its_input_as_in_training(model, architecture, tmp_path):
    from sae_lens import SAE

    ours = objective(model, architecture=architecture, lr=1e-2)
    history = train(ours, range(20))
    assert history[-1]["fvu"] < 0.5 * history[0]["fvu"]
    save_sae(ours.inference_sae(str(MIDDLE)), tmp_path)
    theirs, loaded = SAE.load_from_disk(tmp_path), load_sae(str(tmp_path))
    skip = "Skip" if architecture == "skip-transcoder" else ""
    assert type(theirs).__name__ == f"JumpReLU{skip}Transcoder"
    assert (loaded.sae.reads, loaded.hookpoint) == ("mlp_in", MIDDLE)
    x, y = io_of(model, tokens(20))
    torch.testing.assert_close(
        theirs.to(torch.float64)(x.double()), loaded.sae.double()(x.double()), rtol=1e-10, atol=1e-10
    )
    assert fvu(theirs, x.double(), y) < 1.3 * history[-1]["fvu"]
    assert (theirs.encode(x.double()) > 0).sum(1).double().mean() == pytest.approx(4, rel=0.25)
    torch.testing.assert_close(theirs.W_dec.norm(dim=-1), torch.ones(D_SAE, dtype=torch.float64))
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["hook_name_out"]) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    assert metadata["saelora"]["recipe"]["architecture"] == architecture


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_scales_and_centres_are_folded_into_the_saved_weights(model, architecture):
    ours = objective(model, architecture=architecture)
    train(ours, range(3))
    module = ours.trainers[str(MIDDLE)].sae
    x, _ = io_of(model, tokens(3))
    with torch.no_grad():
        pre = module.inputs(x) @ module.W_enc + module.b_enc
        ranked = pre * module.W_dec.norm(dim=-1)
        acts = pre * (ranked > module.threshold)
        made = acts @ module.W_dec + module.b_dec
        made = made if module.W_skip is None else made + module.inputs(x) @ module.W_skip.T
    expected = made / module.scale_out.float() + module.mean_out
    torch.testing.assert_close(ours.inference_sae(str(MIDDLE))(x), expected, rtol=1e-4, atol=1e-5)


def test_both_sides_are_centred_and_scaled_alike_whatever_their_units(model):
    ours = objective(model)
    train(ours, [0])
    module = ours.trainers[str(MIDDLE)].sae
    x, y = io_of(model, tokens(0))
    for found in (module.inputs(x), module.targets(y)):
        torch.testing.assert_close(found.mean(0), torch.zeros(D_MODEL), rtol=0, atol=1e-4)
        assert found.norm(dim=-1).mean() == pytest.approx(D_MODEL**0.5, rel=1e-4)


def test_figures_of_a_step_are_those_of_the_mlps_output(model):
    ours = objective(model, batch_tokens=10_000, aux_coefficient=0.0)
    figures = train(ours, [0])[0]
    untrained = objective(model, batch_tokens=10_000)
    x, y = io_of(model, tokens(0))
    untrained.trainers[str(MIDDLE)].start(x, y)
    module = untrained.trainers[str(MIDDLE)].sae.eval()
    with torch.no_grad():
        made, acts = dense(module.double(), (x.double() - module.mean_in) * module.scale_in)
        recon = made / module.scale_out + module.mean_out
    error = (recon - y).pow(2)
    assert float(figures["fvu"]) == pytest.approx(float(error.sum() / (y - y.mean(0)).pow(2).sum()), rel=1e-4)
    assert float(figures["mse"]) == pytest.approx(float(error.mean()), rel=1e-4)
    assert float(figures["l0"]) == pytest.approx(float((acts > 0).double().sum(-1).mean()), rel=1e-3)


def test_what_is_read_is_the_mlps_input_after_the_norm_and_its_gain(model):
    ours = objective(model)
    found = ours._activations(tokens(0))
    x, y = io_of(model, tokens(0))
    torch.testing.assert_close(found[ReadPoint(1, "mlp_in")], x)
    torch.testing.assert_close(found[MIDDLE], y)


def test_a_skip_connection_learns_what_is_linear(model):
    """Of a linear map in the MLP's place it leaves less than latents alone do."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = torch.nn.Linear(D_MODEL, D_MODEL)

        def forward(self, x):
            return self.map(x)

    before, model.model.layers[1].mlp = model.model.layers[1].mlp, Linear()
    try:
        left = {}
        for architecture in TRANSCODERS:
            ours = objective(model, architecture=architecture, lr=1e-2, k=1)
            left[architecture] = train(ours, range(20))[-1]["fvu"]
    finally:
        model.model.layers[1].mlp = before
    assert left["skip-transcoder"] < 0.1 * left["transcoder"]


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_resume_matches_uninterrupted_run_bitwise(model, architecture, tmp_path):
    options = {"architecture": architecture, "dead_after_tokens": 300, "passes": 2}
    whole = objective(model, LAYERS, **options)
    train(whole, range(3))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = train(whole, range(3, 6))
    resumed = objective(model, LAYERS, **options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal(train(resumed, range(3, 6)), expected)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_all_layers_in_one_pass_equal_separate_runs(model):
    passes = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    together = objective(model, LAYERS)
    metrics = train(together, range(3))[-1]
    handle.remove()
    assert len(passes) == 3 * 4  # of 16 rows, four at a time, for all layers
    for hookpoint in LAYERS:
        alone = objective(model, [hookpoint])
        assert train(alone, range(3))[-1]["fvu"] == metrics[f"fvu/{hookpoint}"]
        ours = (one.trainers[str(hookpoint)].sae.state_dict() for one in (alone, together))
        assert equal(*ours)


def test_layers_above_the_deepest_are_not_run(model):
    runs = []
    handle = model.model.layers[2].register_forward_hook(lambda *_: runs.append(1))
    train(objective(model, LAYERS[:2]), [0])
    handle.remove()
    assert not runs


# SPEC 5.4
def test_bos_activations_never_enter(model):
    def poison(module, args):
        x = args[0].clone()
        x[:, 0] = 1e6
        return (x,)

    clean = objective(model)
    train(clean, range(2))
    handle = model.model.layers[1].mlp.register_forward_pre_hook(poison)
    poisoned = objective(model)
    train(poisoned, range(2))
    handle.remove()
    assert equal(clean.state_dict(), poisoned.state_dict())


def test_dead_latents_come_back_by_the_auxiliary_loss(model):
    dead = {}
    for coefficient in (0.0, 1.0):
        ours = objective(model, aux_coefficient=coefficient, dead_after_tokens=400, lr=1e-2)
        train(ours, [0])
        with torch.no_grad():
            ours.trainers[str(MIDDLE)].sae.b_enc[: D_SAE // 2] -= 1.0
        dead[coefficient] = float(train(ours, range(1, 41), total=41)[-1]["dead_frac"])
    assert dead[1.0] < 0.7 * dead[0.0]


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_set_for_circuit_tracer_computes_the_same_in_float64(model, architecture, tmp_path: Path):
    ours = objective(model, LAYERS, architecture=architecture)
    train(ours, range(3))
    saved = {h.layer: ours.inference_sae(str(h)) for h in LAYERS}
    save_for_circuit_tracer({layer: sae.state_dict() for layer, sae in saved.items()}, tmp_path / "set", "tiny")
    assert {path.name for path in (tmp_path / "set").iterdir()} == {
        "config.yaml", "layer_0.safetensors", "layer_1.safetensors", "layer_2.safetensors",
    }  # fmt: skip
    for layer, sae in saved.items():
        found = load_sae(str(tmp_path / "set" / f"layer_{layer}.safetensors"))
        assert (found.format, found.sae.reads) == ("circuit_tracer", "mlp_in")
        assert found.hookpoint == Hookpoint(layer, "mlp_out")
        x = io_of(model, tokens(9), layer)[0].double()
        torch.testing.assert_close(found.sae.double()(x), sae.to(torch.float64)(x), rtol=1e-12, atol=1e-12)


def test_sites_that_no_mlp_writes_two_at_one_and_mixtures_are_refused(model):
    with pytest.raises(InputError, match=r"cannot write at layers\.1\.resid_post: it stands for an MLP"):
        objective(model, [Hookpoint(1)])
    with pytest.raises(InputError, match="MLP of layer 1 has two writers"):
        objective(model, [MIDDLE, Hookpoint(1, "mlp_module_out")])
    with pytest.raises(InputError, match="layers 0 to 2"):
        objective(model, [Hookpoint(3, "mlp_out")])
    mixed = {"a": recipe(architecture="transcoder"), "b": recipe(architecture="topk")}
    with pytest.raises(InputError, match="cannot be trained in one run"):
        objective(model, recipes=mixed)
    with pytest.raises(InputError, match="end-to-end"):
        objective(model, kind=EndToEnd)
