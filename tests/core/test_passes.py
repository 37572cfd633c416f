"""An SAE that does not run is an error, never a clean model under a spliced one's name; compiled code runs hooks."""

import pytest
import torch

import families
from families import N_LAYERS
from saelora.core.partial import NO_PREFIX, activations, clean_forward, run_from, shared_stem
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.compiling import compile_layers
from saelora.models.hookpoints import SITES, Hookpoint
from tiny_saes import SPARE_SPECIAL, saes_at

WHERE = [Hookpoint(1), Hookpoint(2, "mlp_out"), Hookpoint(2, "attn_z")]
LOW = [Hookpoint(0), Hookpoint(1, "mlp_out"), Hookpoint(1, "attn_z")]


def two_layers(fresh):
    """Compiling takes as long as there are layers."""
    model = fresh("llama")
    model.model.layers = model.model.layers[:2]
    return model


def logits(model, batch):
    return model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits


def spliced_logits(model, batch, run=None, where=WHERE):
    with splice(model, saes_at(anatomy_of(model), where), SPARE_SPECIAL):
        return logits(model if run is None else run, batch)


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def body_in_place(model):
    anatomy_of(model).body.compile(backend="eager")
    return model


def each_layer(model):
    for layer in anatomy_of(model).layers:
        layer.compile(backend="eager")
    return model


def forward_of_each_layer(model):
    for layer in anatomy_of(model).layers:
        layer.forward = torch.compile(layer.forward, backend="eager")
    return model


def hooked_modules(model):
    for hookpoint in LOW[1:]:
        anatomy_of(model).site(hookpoint)[0].compile(backend="eager")
    return model


def layers_put_in(model):
    layers = anatomy_of(model).layers
    for i in range(len(layers)):
        layers[i] = torch.compile(layers[i], backend="eager")
    return model


def by_us(model):
    compile_layers(model, backend="eager")
    return model


COMPILED = [whole, in_place, body_in_place, each_layer, forward_of_each_layer, hooked_modules, layers_put_in, by_us]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("compiled", COMPILED)
def test_a_splice_acts_on_a_model_that_was_compiled_and_has_run_before(fresh, batch, compiled):
    torch._dynamo.reset()
    model = two_layers(fresh)
    with torch.no_grad():
        clean, expected = logits(model, batch), spliced_logits(model, batch, where=LOW)
        made = compiled(model)
        torch.testing.assert_close(logits(made, batch), clean, rtol=0, atol=1e-12)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        for run in (made, model):
            torch.testing.assert_close(spliced_logits(run, batch, made, LOW), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(logits(made, batch), clean, rtol=0, atol=1e-12)
    assert (expected - clean).abs().max() > 0.01


@pytest.mark.usefixtures("unchecked")
def test_what_is_compiled_under_a_splice_is_clean_afterwards(fresh, batch):
    torch._dynamo.reset()
    model = two_layers(fresh)
    with torch.no_grad():
        clean, expected = logits(model, batch), spliced_logits(model, batch, where=LOW)
        made = whole(model)
        torch.testing.assert_close(spliced_logits(model, batch, made, LOW), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(logits(made, batch), clean, rtol=0, atol=1e-12)


def test_splices_left_in_any_order_leave_compiled_code_free(fresh):
    model, compiled = fresh("llama"), []
    first, second = (splice(model, saes_at(anatomy_of(model), [Hookpoint(i)]), SPARE_SPECIAL) for i in (1, 2))
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)

    def noted(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=noted)(torch.ones(2))
    assert not compiled
    second.__exit__(None, None, None)
    torch.compile(lambda x: x + 1, backend=noted)(torch.ones(2))
    assert len(compiled) == 1


def test_clean_activations_of_a_compiled_decoder_are_read(fresh, batch):
    model = fresh("llama")
    where = [Hookpoint(1, site) for site in SITES]
    expected = activations(model, batch.ids, batch.attention, where)
    with torch.no_grad():
        logits(body_in_place(model), batch)
    found = activations(model, batch.ids, batch.attention, where)
    assert all(torch.equal(found[h], expected[h]) for h in where)


def calls_forward(module):
    """A module whose caller reaches its forward, never its hooks."""
    module._call_impl = module.forward
    module._wrapped_call_impl = module.forward
    type_ = type(module)
    module.__class__ = type(type_.__name__, (type_,), {"__call__": lambda self, *a, **k: self.forward(*a, **k)})


@pytest.mark.parametrize("where", WHERE)
# SPEC 12.3
def test_a_module_that_is_called_past_its_hooks_is_refused(fresh, batch, where):
    model = fresh("llama")
    calls_forward(anatomy_of(model).site(where)[0])
    with torch.no_grad(), pytest.raises(InputError, match=rf"SAE at {where} ran 0 times in a pass .* expected 1: "):
        spliced_logits(model, batch)


def test_a_decoder_that_is_called_past_its_hooks_is_refused(fresh, batch):
    model = fresh("llama")
    calls_forward(anatomy_of(model).body)
    with torch.no_grad(), pytest.raises(InputError, match="ran outside a pass of the model"):
        spliced_logits(model, batch)


def test_a_model_whose_forward_no_longer_calls_its_decoder_is_refused(fresh, batch):
    model = fresh("llama")
    with torch.no_grad():
        captured = logits(model, batch)
        model.forward = lambda **_: type("Out", (), {"logits": captured})()
        with pytest.raises(InputError, match="the model ran without its SAEs"):
            spliced_logits(model, batch)


def test_a_splice_acts_on_a_module_that_was_traced(fresh, batch):
    model = fresh("llama")
    with torch.no_grad():
        expected = spliced_logits(model, batch)
        mlp = anatomy_of(model).layers[2].mlp
        anatomy_of(model).layers[2].mlp = torch.jit.trace(mlp, torch.randn(3, 10, families.D_MODEL).double())
        torch.testing.assert_close(spliced_logits(model, batch), expected, rtol=0, atol=1e-12)


# SPEC 12.3
def test_a_layer_that_runs_twice_is_refused(fresh, batch):
    model = fresh("llama")
    layers = anatomy_of(model).layers
    layers[2] = layers[1]
    with torch.no_grad(), pytest.raises(InputError, match=r"layers\.1\.resid_post ran 2 times in a pass"):
        spliced_logits(model, batch)


def test_passes_over_a_part_of_the_layers_run_the_saes_of_that_part_alone(batch):
    model = families.tiny("llama")
    ran = []
    with splice(
        model, saes_at(anatomy_of(model), WHERE), SPARE_SPECIAL, observer=lambda h, *_: ran.append(h)
    ) as spliced:
        with spliced.disabled():
            kept = clean_forward(model, batch.ids, batch.attention, [1, 2]).entries
        assert ran == []
        for run, expected in (
            (lambda: run_from(model, batch.ids, batch.attention, NO_PREFIX, None), [WHERE[0], WHERE[2], WHERE[1]]),
            (lambda: run_from(model, batch.ids, batch.attention, 1, kept[1]), [WHERE[0], WHERE[2], WHERE[1]]),
            (lambda: run_from(model, batch.ids, batch.attention, 2, kept[2]), []),
            (lambda: shared_stem(model, batch.ids, batch.attention, NO_PREFIX, None, [1]), [WHERE[0]]),
            (lambda: run_from(model, batch.ids, batch.attention, N_LAYERS - 1, kept[2]), []),
        ):
            run()
            assert ran == expected
            ran.clear()


def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused(fresh, batch):
    model = fresh("llama")
    weight = model.get_input_embeddings().weight.requires_grad_()
    other = type(batch)(batch.ids.roll(1, 1), batch.attention.roll(1, 1), batch.replaced)

    def gradients(*batches, keep=None):
        weight.grad = None
        with splice(model, saes_at(anatomy_of(model), WHERE), SPARE_SPECIAL):
            sums = [logits(model, each).square().sum() for each in batches[:1]]
            if keep is not None:
                with torch.no_grad() if keep == "no_grad" else torch.enable_grad():
                    logits(model, other)
            sums[0].backward()
            first = weight.grad.clone()
            logits(model, other).square().sum().backward()  # and the next step's mask is its own
        return first, weight.grad

    expected = gradients(batch)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(batch), gradients(batch, keep="no_grad")
    for pair in found:
        torch.testing.assert_close(pair, expected, rtol=0, atol=1e-9)
    with pytest.raises(InputError, match=r"gradient checkpointing runs layers\.\d"):
        gradients(batch, keep="grad")
