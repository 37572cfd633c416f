"""End-to-end SAE training: the loss and its gradient against the plain way, SAEs side by side, resuming, bad input."""

import copy
import math

import pytest
import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput

from families import BOS, N_LAYERS, tiny
from sae_steps import METADATA, assert_figures_are_plain, equal, recipe, tokens
from saelora.core.splice import TokenMask
from saelora.errors import InputError, NonFiniteLoss
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.sae_training.end_to_end import EndToEnd
from tiny_saes import hooks_in

NOT_BOS = TokenMask((BOS,))
MIDDLE, FIRST = Hookpoint(1), Hookpoint(0, "mlp_out")
ARCHITECTURES = ["topk", "batchtopk", "jumprelu", "standard", "gated"]


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(tiny("llama")).float()


def short_recipe(**changed):
    return recipe(**{"batch_tokens": 200, **changed})  # two pieces of 8 rows of 24 tokens


def end_to_end(model, hookpoints=(MIDDLE,), recipes=None, token_mask=NOT_BOS, downstream=0.0, autocast=None, **changed):
    return EndToEnd(
        model, list(hookpoints), recipes or {"": short_recipe(**changed)}, token_mask=token_mask, device="cpu",
        n_tokens_total=10_000, metadata=METADATA, downstream=downstream, autocast=autocast,
    )  # fmt: skip


def train(ours, seeds, total=20):
    return [{k: v.clone() for k, v in ours.step(tokens(s), s / total).items()} for s in seeds]


def in_double(ours):
    """The objective with SAEs in float64, decoder rows of uneven lengths and a few dead latents, and started."""
    train(ours, [0])
    for i, trainer in enumerate(ours.trainers.values()):
        generator = torch.Generator().manual_seed(i)
        trainer.sae.to(torch.float64)
        for weight in trainer.sae.parameters():
            noise = 1 + 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.data = weight.data * noise.to(weight.dtype)
        trainer.tokens_silent_S[:12] = 10**6
    return ours


def gradients_of_a_step(ours, rows):
    """Metrics and, instead of an update, the gradients by SAE and weight."""
    found = {}
    for name, trainer in ours.trainers.items():

        def instead(progress, name=name, trainer=trainer):
            found[name] = {n: p.grad.clone() for n, p in trainer.sae.named_parameters()}
            trainer.optimizer.zero_grad()

        trainer.update = instead
    return ours.step(rows, 0.5), found


def plain(model, rows, hookpoint, replace=None):
    """One plain forward of the whole model: logits and all layers' outputs."""
    anatomy, outputs, handles = anatomy_of(model), {}, []
    module, side = anatomy.site(hookpoint)

    def value(output):
        return output if torch.is_tensor(output) else output[0]

    def swap(_m, args, output=None):
        if side == "input":
            return (replace(args[0]), *args[1:])
        return replace(output) if torch.is_tensor(output) else (replace(output[0]), *output[1:])

    for i, layer in enumerate(anatomy.layers):
        handles.append(layer.register_forward_hook(lambda _m, _a, output, i=i: outputs.update({i: value(output)})))
    if replace is not None:
        register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
        handles.append(register(swap))
    try:
        return model(rows, use_cache=False).logits, outputs
    finally:
        for handle in handles:
            handle.remove()


def reference(model, trainer, hookpoint, rows, downstream, above):
    """Loss, KL and gradients the plain way: SAELens' dense class, full logits, autograd."""
    own_class, _ = get_sae_training_class(trainer.recipe.architecture)
    sae = own_class(trainer.sae.cfg).to(torch.float64)
    sae.load_state_dict(trainer.sae.state_dict())
    mask, outputs = rows != BOS, {}

    def replace(x):
        coefficients = {name: float(c.value) for name, c in sae.get_coefficients().items()}
        outputs["step"] = step = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x[mask].detach() * trainer.scale,
                coefficients=coefficients,
                dead_neuron_mask=trainer.dead_S,
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        out = x.clone()
        out[mask] = step.sae_out / trainer.scale
        return out

    with torch.no_grad():
        clean_logits, clean = plain(model, rows, hookpoint)
    logits, spliced = plain(model, rows, hookpoint, replace)
    p, q = clean_logits.log_softmax(-1), logits.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum() / rows.numel()
    losses = outputs["step"].losses
    loss = kl + sum(value for key, value in losses.items() if key != "mse_loss") / sae.cfg.d_in
    if downstream:
        apart = [((spliced[i] - clean[i])[mask] ** 2).sum() for i in above]
        spread = [((clean[i][mask] - clean[i][mask].mean(0)) ** 2).sum() for i in above]
        loss = loss + downstream * sum(a / s for a, s in zip(apart, spread, strict=True)) / len(above)
    loss.backward()
    return loss.detach(), kl.detach(), {name: p.grad for name, p in sae.named_parameters()}


CASES = [
    (family, hookpoint, downstream, "topk")
    for family in ("llama", "gemma2", "gpt2", "gpt_neox-parallel")
    for hookpoint in (MIDDLE, Hookpoint(1, "mlp_out"))
    for downstream in (0.0, 0.7)
]
CASES += [("llama", Hookpoint(2, "resid_pre"), 0.7, "topk"), ("llama", Hookpoint(1, "attn_z"), 0.7, "topk")]
CASES += [("gemma2", MIDDLE, 0.7, name) for name in ARCHITECTURES[1:]]


@pytest.mark.parametrize(("family", "hookpoint", "downstream", "architecture"), CASES)
def test_loss_and_gradient_equal_the_plain_way_in_float64(family, hookpoint, downstream, architecture):
    model = tiny(family)
    ours = in_double(
        end_to_end(model, [hookpoint], downstream=downstream, architecture=architecture, batch_tokens=10_000)
    )
    rows = tokens(1)
    before = copy.deepcopy(ours.trainers[str(hookpoint)])
    metrics, found = gradients_of_a_step(ours, rows)
    above = range(2, N_LAYERS)
    loss, kl, expected = reference(model, before, hookpoint, rows, downstream, above)
    torch.testing.assert_close(metrics["loss"].double(), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["kl"].double(), kl, rtol=1e-6, atol=0)
    assert loss > kl or (architecture == "batchtopk" and not downstream)
    for name, gradient in expected.items():
        tolerance = {"rtol": 1e-4, "atol": 1e-7} if name == "threshold" else {"rtol": 1e-8, "atol": 1e-11}
        assert gradient.abs().max() > 1e-6 or name.startswith("r_")
        torch.testing.assert_close(found[str(hookpoint)][name], gradient, **tolerance)


def test_downstream_error_counts_the_layers_above_the_sae_alone(model):
    assert end_to_end(model, [MIDDLE], downstream=1.0)._above == {MIDDLE: [2, 3]}
    assert end_to_end(model, [Hookpoint(1, "mlp_out")], downstream=1.0)._above == {Hookpoint(1, "mlp_out"): [2, 3]}
    assert end_to_end(model, [Hookpoint(1, "resid_pre")], downstream=1.0)._above == {
        Hookpoint(1, "resid_pre"): [1, 2, 3]
    }


@pytest.mark.parametrize("downstream", [0.0, 1.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kl_falls(model, architecture, downstream):
    history = train(end_to_end(model, architecture=architecture, downstream=downstream, lr=1e-2), range(8))
    assert history[-1]["kl"] < 0.9 * history[0]["kl"]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_metrics_equal_a_naive_reference(model):
    ours = end_to_end(model, lr=1e-12)
    train(ours, [0])
    metrics = train(ours, [1])[0]
    rows = tokens(1)
    _, outputs = plain(model, rows, MIDDLE)
    x = outputs[1][rows != BOS].detach().double()
    sae = ours.inference_sae(str(MIDDLE)).to(torch.float64)
    assert_figures_are_plain(metrics, sae, x)
    loss, kl, _ = reference(
        copy.deepcopy(model).double(), _double(ours.trainers[str(MIDDLE)]), MIDDLE, rows, 0.0, range(0)
    )
    torch.testing.assert_close(metrics["loss"].double(), loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(metrics["kl"].double(), kl, rtol=1e-4, atol=0)
    assert ours.trainers[str(MIDDLE)].n_steps == 2 * 2


def _double(trainer):
    trainer = copy.deepcopy(trainer)
    trainer.sae.to(torch.float64)
    return trainer


VARIANTS = {
    "k=2": {"k": 2},
    "batch_tokens=120": {"batch_tokens": 120},
    **{name: {"architecture": name} for name in ("batchtopk", "jumprelu")},
}


@pytest.mark.parametrize("downstream", [0.0, 0.5])
def test_several_saes_at_once_end_as_each_alone_bitwise(model, downstream):
    recipes = {name: short_recipe(**given) for name, given in VARIANTS.items()}
    together = end_to_end(model, [MIDDLE, FIRST], recipes, downstream=downstream)
    metrics = train(together, range(2))[-1]
    for i, (variant, given) in enumerate(VARIANTS.items()):
        hookpoint = (MIDDLE, FIRST)[(i + (downstream > 0)) % 2]  # each variant at both, in one case and the other
        name = f"{hookpoint}/{variant}"
        alone = end_to_end(model, [hookpoint], downstream=downstream, **given)
        own = train(alone, range(2))[-1]
        assert equal(alone.trainers[str(hookpoint)].state_dict(), together.trainers[name].state_dict())
        assert all(metrics[f"{key}/{name}"] == own[key] for key in ("kl", "mse", "fvu", "l0", "dead_frac"))
    for key in ("loss", "kl", "fvu"):
        assert math.isfinite(metrics[key])


def test_clean_passes_are_shared_and_the_prefix_is_not_run_again(model):
    ours = end_to_end(model, recipes={"k=2": short_recipe(k=2), "k=8": short_recipe(k=8)})
    train(ours, [0])
    runs = []
    handles = [m.register_forward_hook(lambda *_, i=i: runs.append(i)) for i, m in enumerate(model.model.layers)]
    try:
        train(ours, [1])
    finally:
        for handle in handles:
            handle.remove()
    assert [runs.count(layer) for layer in (0, 2, 3)] == [2, 6, 6]  # 2 pieces: once for all, above once more for each


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resume_matches_uninterrupted_run_bitwise(model, architecture, tmp_path):
    def make():
        return end_to_end(model, architecture=architecture, dead_after_tokens=300, downstream=1.0)

    whole = make()
    train(whole, range(2))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = train(whole, range(2, 4))
    resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal(train(resumed, range(2, 4)), expected)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_model_is_left_as_it_was(model):
    model = copy.deepcopy(model).requires_grad_(True).train()
    before, hooks = copy.deepcopy(model.state_dict()), hooks_in(model)
    train(end_to_end(model, [MIDDLE, FIRST], downstream=1.0), range(2))
    assert equal(dict(model.state_dict()), dict(before))
    assert hooks_in(model) == hooks
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("variants", [["k=2"], ["k=2", "batchtopk"]])
def test_a_loss_that_is_not_finite_changes_nothing(model, variants):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = float("nan")
    recipes = {name: short_recipe(**VARIANTS[name]) for name in variants}
    good = [tokens(seed).clamp(max=62) for seed in range(3)]
    poisoned = good[1].clone()
    poisoned[-1, -1] = 63  # in the last piece: those before have been learnt by then
    ours, expected = (end_to_end(model, recipes=recipes) for _ in range(2))
    ours.step(good[0], 0.0)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(NonFiniteLoss, match="KL nan"):
        ours.step(poisoned, 0.1)
    assert equal(ours.state_dict(), before)
    ours.step(good[2], 0.2)
    for rows, progress in ((good[0], 0.0), (good[2], 0.2)):
        expected.step(rows, progress)
    assert equal(ours.state_dict(), expected.state_dict())


def test_first_step_that_fails_leaves_an_untrained_sae(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = float("nan")
    ours = end_to_end(model)
    with pytest.raises(NonFiniteLoss):
        ours.step(torch.full((16, 24), 63), 0.0)
    with pytest.raises(InputError, match="not been trained"):
        ours.inference_sae(str(MIDDLE))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_model_trains_float32_saes_to_about_the_same(model, architecture):
    half = copy.deepcopy(model).to(torch.bfloat16)
    ours = end_to_end(half, architecture=architecture, downstream=1.0, autocast=torch.bfloat16, dead_after_tokens=300)
    whole = end_to_end(model, architecture=architecture, downstream=1.0, dead_after_tokens=300)
    history, expected = train(ours, range(2)), train(whole, range(2))
    assert all(weight.dtype == torch.float32 for weight in ours.trainers[str(MIDDLE)].sae.parameters())
    for key in ("loss", "kl", "fvu"):
        torch.testing.assert_close(history[-1][key], expected[-1][key], rtol=0.15, atol=0.0)


def test_pieces_that_the_sae_sees_nothing_of_are_passed_over(model):
    class NotThoseWithFive(TokenMask):
        def __call__(self, input_ids, attention_mask=None, past=0):
            return super().__call__(input_ids, attention_mask, past) & (input_ids[:, 1:2] != 5)

    rows = tokens(0)
    rows[:, 1], rows[4:8, 1] = 6, 5
    ours, expected = (end_to_end(model, token_mask=NotThoseWithFive((BOS,)), batch_tokens=48) for _ in range(2))
    metrics = ours.step(rows, 0.0)
    assert ours.trainers[str(MIDDLE)].n_steps == 6
    assert ours.n_tokens == 12 * 23
    assert all(math.isfinite(value) for value in metrics.values())
    with pytest.raises(InputError, match="exempts all"):
        expected.step(rows[4:8], 0.0)


def test_bad_input_is_refused_in_one_line(model):
    cases = [
        ({"architecture": "matryoshka"}, r"layers.1.resid_post: a matryoshka .*--objective local"),
        ({"downstream": -1.0}, "downstream is -1.0, expected 0 or more"),
        ({"hookpoints": [Hookpoint(N_LAYERS - 1)], "downstream": 1.0}, "no layer above layers.3.resid_post"),
        ({"hookpoints": [MIDDLE, MIDDLE]}, "no two alike"),
    ]
    for changed, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            end_to_end(model, **changed)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="this run trains"):
        end_to_end(model, [FIRST]).load_state_dict(end_to_end(model).state_dict())
