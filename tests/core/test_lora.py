"""Placement, what is adapted, and what a disabled or saved adapter means."""

import copy
from itertools import product

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

import families
from families import D_MODEL, N_LAYERS
from saelora.core import lora_linear
from saelora.core.lora import adapted_layers, disabled, fuse, layers_of, lora_config
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, TinySAE

KINDS = {
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


def adapt(model, layers=(2, 3), **options):
    options = {"rank": 2, "alpha": 4.0, **options}
    return get_peft_model(model, lora_config(model, list(layers), **options)).double().eval()


def train_a_little(model):
    """Move the adapter away from its start."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.fixture(
    params=[*((name, "default") for name in families.NAMES), *product(("llama", "gpt2"), KINDS)], ids="-".join
)
def model_and_kind(request):
    """Every family with plain LoRA; every kind of LoRA with linear layers of both kinds."""
    name, kind = request.param
    return families.tiny(name), KINDS.get(kind, {})


# SPEC 3.4
def test_zero_init_adapter_equals_spliced_model(model_and_kind, fresh, batch):
    model, kind = model_and_kind
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL):
        expected = model(input_ids=batch.ids).logits
    adapted = adapt(fresh(model), **kind)
    with splice(adapted, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL):
        # the orthogonal start multiplies to zero in float32
        torch.testing.assert_close(adapted(input_ids=batch.ids).logits, expected, rtol=0, atol=1e-4)


def test_disabled_adapter_equals_the_base_bit_for_bit(model_and_kind, fresh, batch):
    model, kind = model_and_kind
    clean = model(input_ids=batch.ids).logits
    adapted = train_a_little(adapt(fresh(model), **kind))
    assert not torch.allclose(adapted(input_ids=batch.ids).logits, clean, atol=1e-3)
    with disabled(adapted):
        assert torch.equal(adapted(input_ids=batch.ids).logits, clean)
    assert not torch.allclose(adapted(input_ids=batch.ids).logits, clean, atol=1e-3)


def test_disabled_is_harmless_without_an_adapter(batch):
    model = families.tiny("llama")
    with disabled(model):
        assert torch.equal(model(input_ids=batch.ids).logits, families.tiny("llama")(input_ids=batch.ids).logits)


def test_all_attention_and_mlp_linears_of_the_chosen_layers_are_adapted_and_no_others(model, fresh):
    def linears(layer):
        return {id(m) for m in layer.modules() if isinstance(m, nn.Linear | Conv1D)}

    model = fresh(model)
    expected = set.union(*(linears(layer) for layer in (anatomy_of(model).layers[i] for i in (1, 3))))
    adapted = adapt(model, layers=(1, 3))
    assert {id(m.base_layer) for m in adapted.modules() if hasattr(m, "lora_A")} == expected
    assert adapted_layers(adapted) == [1, 3]
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        name for name, _ in adapted.named_parameters() if "lora_" in name
    }


def test_a_second_adapter_adapts_the_same_modules(fresh):
    adapted = adapt(fresh("llama"), layers=(1,))
    adapted.add_adapter("second", lora_config(adapted, [2], rank=2, alpha=4.0))
    assert adapted_layers(adapted) == [1, 2]
    assert anatomy_of(adapted).linears() == anatomy_of(families.tiny("llama")).linears()


def test_saved_adapter_loads_with_plain_peft(model, fresh, batch, tmp_path):
    adapted = train_a_little(adapt(fresh(model)))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(model), tmp_path).eval()
    assert torch.equal(loaded(input_ids=batch.ids).logits, adapted(input_ids=batch.ids).logits)


UNSAFE = ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "PiSSA", "mystery"]


@pytest.mark.parametrize("init", UNSAFE)
# SPEC 3.4
def test_initialisations_that_change_the_base_weights_are_refused(init):
    with pytest.raises(
        InputError, match=f"LoRA initialisation '{init}' is refused.*use one of default, gaussian, orth"
    ):
        lora_config(families.tiny("llama"), [1], rank=2, alpha=4.0, init=init)


@pytest.mark.parametrize(("rank", "init"), [(0, "default"), (-1, "gaussian"), (3, "orthogonal")])
def test_ranks_that_cannot_be_used_are_refused(rank, init):
    with pytest.raises(InputError, match=f"rank {rank} is"):
        lora_config(families.tiny("llama"), [1], rank=rank, alpha=4.0, init=init)


@pytest.mark.parametrize(
    ("placement", "hookpoints", "layers"),
    [
        ("all", [], [0, 1, 2, 3]),
        ("after", [Hookpoint(1)], [2, 3]),
        ("after", [Hookpoint(1, "mlp_out")], [2, 3]),
        ("after", [Hookpoint(1, "resid_pre")], [1, 2, 3]),
        ("after", [Hookpoint(2), Hookpoint(1)], [2, 3]),
        ("after", [Hookpoint(1), Hookpoint(1, "resid_pre")], [1, 2, 3]),
        ("layers:2", [], [2]),
        ("layers:2,1", [], [1, 2]),
        ("layers:1-2", [], [1, 2]),
        ("layers:0,2-3", [], [0, 2, 3]),
    ],
)
def test_placement_names_layers(placement, hookpoints, layers):
    assert layers_of(placement, hookpoints, N_LAYERS) == layers


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("before", "placement 'before' is not known: expected after, all, or layers:13,14"),
        ("after", "placement 'after' is empty: layer 3 is the last one; use --placement all"),
        ("layers:2,4", "names layer 4: this model has layers 0 to 3"),
        ("layers:", "'' is no layer"),
        ("layers:two", "'two' is no layer"),
        ("layers:1-", "'1-' is no layer"),
        ("layers:-1", "'-1' is no layer"),
        ("layers:3-1", "'3-1' is no layer"),
    ],
)
def test_placement_that_names_no_layer_is_refused(placement, message):
    with pytest.raises(InputError, match=message):
        layers_of(placement, [Hookpoint(3)], N_LAYERS)


def moved(model, rank=2, **options):
    """An adapter on all layers whose B is not zero, so that its product shows."""
    wrapped = get_peft_model(model, lora_config(model, list(range(N_LAYERS)), rank=rank, alpha=3.0, **options)).double()
    draw = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return wrapped.eval()


class Called(TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.add(func)
        return func(*args, **(kwargs or {}))


def value_and_gradients(model, ids, **inputs):
    logits = model(input_ids=ids, **inputs).logits
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(logits.logsumexp(-1).square().sum(), list(trained.values()))
    return [logits.detach(), *grads]


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox-parallel", "phi3"])
def test_fused_layers_give_pefts_values_and_gradients(fresh, batch, name, options):
    if name == "gpt2" and "use_dora" in options:
        options = {}  # PEFT has no DoRA for GPT-2's transposed linears
    model = moved(fresh(name), **options)
    expected = value_and_gradients(model, batch.ids)
    fuse(model)
    with Called() as called:
        found = value_and_gradients(model, batch.ids)
    assert (torch.ops.aten.addmm_.default in called.operations) == ("use_dora" not in options)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11 * max(1.0, wanted.abs().max().item()))


class Casts(TorchDispatchMode):
    """Notes the shape of every tensor whose precision is changed."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._to_copy and (kwargs or {}).get("dtype") not in (None, args[0].dtype):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_a_gpu", [True, False])
def test_under_autocast_gpus_cast_weights_alone_and_cpus_are_left_to_peft(fresh, batch, monkeypatch, on_a_gpu):
    """A CPU stands for the GPU: the same operations, the same autocast."""
    model = moved(fresh("llama")).bfloat16()
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in adapter.values():
        parameter.data = parameter.data.float()
    exact = [tensor.double() for tensor in value_and_gradients(copy.deepcopy(model).double(), batch.ids)]
    if on_a_gpu:
        monkeypatch.setattr(lora_linear, "ONE_CAST", ("cpu",))

    def run():
        with torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            logits = model(input_ids=batch.ids).logits
        grads = torch.autograd.grad(logits.double().logsumexp(-1).square().sum(), list(adapter.values()))
        return [logits.detach(), *grads], casts.shapes

    peft, peft_casts = run()
    fuse(model)
    fused, casts = run()
    assert [tensor.dtype for tensor in fused] == [tensor.dtype for tensor in peft]
    if not on_a_gpu:
        assert casts == peft_casts
        assert all(torch.equal(a, b) for a, b in zip(fused, peft, strict=True))
        return
    weights = {tuple(p.shape) for p in adapter.values()}
    weights |= {shape[::-1] for shape in weights}
    adapted = len(adapter) // 2  # linear layers
    assert len(peft_casts) - len(casts) >= adapted
    assert sum(shape in weights for shape in casts) == len(adapter)

    def error(found):
        return sum(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)) / len(exact)

    assert error(fused) < 1.1 * error(peft)


def test_fused_layers_leave_merged_disabled_and_several_adapters_to_peft(fresh, batch):
    model = moved(fresh("llama"))
    clean = fresh("llama")(input_ids=batch.ids).logits
    model.add_adapter("other", lora_config(model.get_base_model(), [1], rank=3, alpha=3.0))
    model.double()
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            parameter.data += 0.1
    both = ["default", "other"]

    def outputs():
        model.base_model.set_adapter(both)
        together = model(input_ids=batch.ids).logits
        model.set_adapter("default")
        with disabled(model):
            off = model(input_ids=batch.ids).logits
        model.merge_adapter()
        merged = model(input_ids=batch.ids).logits
        model.unmerge_adapter()
        return together, off, merged

    expected = outputs()
    fuse(model)
    for got, wanted in zip(outputs(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(expected[1], clean, rtol=0, atol=1e-10)
