"""Prefix and suffix against plain full forwards, in every family."""

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model

import families
from families import D_MODEL, N_LAYERS
from saelora.core.head import head_of
from saelora.core.kl_head import kl_head
from saelora.core.lora import adapted_layers, disabled, layers_of, lora_config
from saelora.core.partial import NO_PREFIX, activations, clean_forward, entry_layer, run_from
from saelora.core.splice import splice
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import SITES, Hookpoint, parse_hookpoint
from tiny_saes import SPARE_SPECIAL, Broken, TinySAE, hooks_in, saes_at

CASES = {  # hookpoints, placement, entry layer
    "one-after": (["layers.1.resid_post"], "after", 1),
    "several-all": (["layers.1.resid_post", "layers.2.mlp_out"], "all", NO_PREFIX),
    "pre-single": (["layers.2.resid_pre"], "layers:3", 1),
    "adapter-below": (["layers.1.attn_out", "layers.3.resid_post"], "layers:1-2", 0),
    "z-and-pre": (["layers.2.attn_z", "layers.3.resid_pre"], "after", 1),
}


def adapt(model, layers):
    """A real adapter whose B is not zero, so the student's weights differ from the teacher's."""
    wrapped = get_peft_model(model, lora_config(model, layers, rank=2, alpha=4)).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return wrapped


def count_runs(model):
    """How often each layer runs, from here on."""
    runs = [0] * N_LAYERS

    def count(index):
        def hook(*_):
            runs[index] += 1

        return hook

    for i, layer in enumerate(anatomy_of(model).layers):
        layer.register_forward_pre_hook(count(i))
    return runs


def gradients(loss, model):
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(adapter, torch.autograd.grad(loss, adapter.values()), strict=True))


def plain_loss(model, spliced, batch):
    """Two full forwards, output logits, torch's kl_div over the tokens that are not padding."""
    with torch.no_grad(), spliced.disabled(), disabled(model):
        teacher = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    student = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    seen = batch.attention.bool()
    student, teacher = student[seen].log_softmax(-1), teacher[seen].log_softmax(-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
# SPEC 11.2
def test_prefix_and_suffix_equal_two_full_forwards_in_loss_and_gradient(model, fresh, batch, case):
    names, placement, entry = case
    hookpoints = [parse_hookpoint(name) for name in names]
    saes = saes_at(anatomy_of(model), hookpoints)
    model = adapt(fresh(model), layers_of(placement, hookpoints, N_LAYERS))
    assert entry_layer(saes, adapted_layers(model)) == entry
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        expected = plain_loss(model, spliced, batch)
        with torch.no_grad(), spliced.disabled(), disabled(model):
            expected_hidden = anatomy_of(model).body(input_ids=batch.ids, attention_mask=batch.attention)[0]
            clean = clean_forward(model, batch.ids, batch.attention, [entry])
        runs = count_runs(model)
        student = run_from(model, batch.ids, batch.attention, entry, clean.entries.get(entry))
    loss = kl_head(
        student.flatten(0, 1), clean.hidden.flatten(0, 1), head_of(model), batch.attention.flatten(), chunk=7
    ).kl
    assert torch.equal(clean.hidden, expected_hidden)
    assert runs == [int(layer > entry) for layer in range(N_LAYERS)]
    assert expected > 0.1
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    got, wanted = gradients(loss, model), gradients(expected, model)
    assert any(grad.abs().max() > 1e-3 for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox-parallel", "gpt2"])
def test_gradient_flows_through_a_frozen_sae_to_adapters_below_it(fresh, batch, name):
    model, sae = adapt(fresh(name), [1]), TinySAE(D_MODEL)
    with splice(model, {Hookpoint(2): sae}, SPARE_SPECIAL):
        loss = model(input_ids=batch.ids).logits[batch.replaced].logsumexp(-1).sum()
        loss.backward()
    with_gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(with_gradient) == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert all(grad.abs().max() > 0 for grad in with_gradient.values())
    assert all(p.grad is None for p in sae.parameters())


@pytest.mark.parametrize(("site", "entry"), [("resid_post", 2), *((s, 1) for s in SITES if s != "resid_post")])
def test_entry_lies_below_both_the_lowest_splice_and_the_lowest_adapter(site, entry):
    splices = [Hookpoint(2, site), Hookpoint(3, "resid_pre")]
    assert entry_layer(splices) == entry_layer(splices, [3]) == entry
    assert entry_layer(splices, [1, 3]) == 0
    assert entry_layer(splices, range(4)) == NO_PREFIX
    assert entry_layer([Hookpoint(0, "resid_pre")]) == NO_PREFIX


def test_several_entries_come_from_one_clean_forward(model, batch):
    runs_once = clean_forward(model, batch.ids, batch.attention, [0, 2, NO_PREFIX])
    assert set(runs_once.entries) == {0, 2}
    for entry, stored in runs_once.entries.items():
        assert torch.equal(run_from(model, batch.ids, batch.attention, entry, stored), runs_once.hidden)


def test_activations_run_no_layer_above_the_highest_hookpoint(model, fresh, batch):
    model = fresh(model)
    runs = count_runs(model)
    activations(model, batch.ids, batch.attention, [Hookpoint(0), Hookpoint(1, "mlp_out")])
    assert runs == [1, 1, 0, 0]


@pytest.mark.parametrize("run", ["run_from", "activations", "clean_forward"])
def test_layers_and_hooks_are_restored_even_after_an_error(model, batch, run):
    anatomy, hooks = anatomy_of(model), hooks_in(model)
    before, clean = anatomy.layers, model(input_ids=batch.ids).logits
    stored = torch.zeros(*batch.ids.shape, D_MODEL, dtype=torch.float64)

    def call():
        if run == "run_from":
            return run_from(model, batch.ids, None, 1, stored)
        if run == "activations":
            return activations(model, batch.ids, None, [Hookpoint(2)])
        return clean_forward(model, batch.ids, None, [1])

    call()
    assert (anatomy.layers is before, hooks_in(model)) == (True, hooks)
    with splice(model, {Hookpoint(2): Broken()}, SPARE_SPECIAL), pytest.raises(RuntimeError, match="broken"):
        call()
    assert (anatomy.layers is before, hooks_in(model)) == (True, hooks)
    assert torch.equal(model(input_ids=batch.ids).logits, clean)


def test_tiny_models_put_their_windows_and_softcaps_to_work(batch):
    caps = families.tiny("gemma2").config
    logits = families.tiny("gemma2")(input_ids=batch.ids).logits
    assert logits.abs().max() > 0.9 * caps.final_logit_softcapping
    for name in ("mistral", "qwen2-sliding", "gemma2", "gemma3", "olmo3", "phi3", families.WITH_IMAGES):
        assert families.tiny(name).config.get_text_config().sliding_window < batch.ids.shape[1]
