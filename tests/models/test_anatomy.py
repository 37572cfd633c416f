"""Where each family keeps its parts."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

import families
from families import D_MODEL, N_LAYERS, VOCAB
from saelora.core.head import Head, head_of
from saelora.core.lora import lora_config
from saelora.core.partial import activations
from saelora.models import anatomy as table
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import SITES, Hookpoint


def test_every_family_of_the_table_is_tested():
    tested = {families.tiny(name).config.get_text_config().model_type for name in families.NAMES}
    assert tested == set(table._FAMILIES)


def test_head_of_the_final_hidden_states_gives_the_models_logits(model, fresh, batch):
    model = fresh(model)  # asked for hidden states, transformers leaves hooks on it
    anatomy = anatomy_of(model)
    out = model(input_ids=batch.ids, attention_mask=batch.attention, output_hidden_states=True)
    torch.testing.assert_close(head_of(model).logits(out.hidden_states[-1]), out.logits, rtol=0, atol=1e-12)
    hidden = anatomy.body(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state
    assert torch.equal(hidden, out.hidden_states[-1])


def test_head_keeps_float32_logits_of_low_precision_weights():
    head = head_of(families.tiny("llama"))
    low = Head(head.weight.bfloat16())
    assert low.logits(torch.ones(2, D_MODEL, dtype=torch.bfloat16)).dtype == torch.float32


def test_widths_are_those_of_the_activations(model, batch):
    anatomy = anatomy_of(model)
    assert (anatomy.n_layers, anatomy.d_model, anatomy.d_vocab) == (N_LAYERS, D_MODEL, VOCAB)
    every = [Hookpoint(1, site) for site in SITES]
    for hookpoint, x in activations(model, batch.ids, batch.attention, every).items():
        assert anatomy.width(hookpoint) == x.shape[-1]


def test_adapter_hides_nothing(model, fresh):
    before = anatomy_of(model)
    adapted = get_peft_model(fresh(model), lora_config(model, [0, 1], rank=2, alpha=4.0))
    after = anatomy_of(adapted)
    assert after.linears() == before.linears()
    for site in SITES:
        assert after.width(Hookpoint(1, site)) == before.width(Hookpoint(1, site))


class Packed(nn.Module):
    """As a 4-bit layer: no subclass of torch's, bytes in another shape as weight, widths of its own."""

    def __init__(self, like):
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.weight = nn.Parameter(torch.zeros(like.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox-serial", "phi"])
def test_packed_weights_hide_neither_widths_nor_linears(fresh, name):
    model = fresh(name)
    before, site = anatomy_of(model), Hookpoint(1, "attn_z")
    linears, width = before.linears(), before.width(site)
    for layer in before.layers:
        for path in linears:
            parent, _, own = path.rpartition(".")
            setattr(layer.get_submodule(parent), own, Packed(layer.get_submodule(path)))
    after = anatomy_of(model)
    assert (after.linears(), after.width(site)) == (linears, width)
    assert width == 12 if name in ("llama", "gemma2") else width == D_MODEL
