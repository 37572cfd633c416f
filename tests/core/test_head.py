"""The unembedding as a matrix: shared where it is one, found by calling the module where it is not."""

import pytest
import torch
from torch import nn

import families
from families import D_MODEL, VOCAB
from saelora.core.head import head_of


class Wrapped(nn.Module):
    """An unembedding that is no linear layer, though one is inside."""

    def __init__(self, inner: nn.Linear, factor: float = 1.0):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, hidden):
        return self.factor * self.inner(hidden)


def biased() -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(D_MODEL, VOCAB).double().requires_grad_(False)


def hidden(n: int = 5) -> torch.Tensor:
    return torch.randn(n, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_plain_unembedding_is_shared_not_copied(model):
    assert head_of(model).weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_what_wraps_an_unembedding_is_called_bias_included(fresh, factor):
    model = fresh("llama")
    model.lm_head = Wrapped(biased(), factor)
    head = head_of(model)
    torch.testing.assert_close(head.logits(hidden()), model.lm_head(hidden()), rtol=0, atol=1e-12)
    torch.testing.assert_close(head.bias, factor * model.lm_head.inner.bias, rtol=0, atol=1e-12)


def test_a_hook_or_another_forward_on_a_plain_unembedding_is_heeded(fresh):
    hooked, replaced = fresh("llama"), fresh("llama")
    hooked.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    plain = replaced.lm_head.forward
    replaced.lm_head.forward = lambda hidden: 2 * plain(hidden)
    for model in (hooked, replaced):
        torch.testing.assert_close(head_of(model).logits(hidden()), model.lm_head(hidden()), rtol=0, atol=1e-12)


def test_a_subclass_of_a_linear_layer_is_called(fresh):
    class Halved(nn.Linear):
        def forward(self, input):
            return super().forward(input) / 2

    model = fresh("llama")
    model.lm_head.__class__ = Halved
    torch.testing.assert_close(head_of(model).logits(hidden()), model.lm_head(hidden()), rtol=0, atol=1e-12)


def test_families_tied_or_not_have_all_their_tokens():
    for name in families.NAMES:
        assert head_of(families.tiny(name)).weight.shape == (VOCAB, D_MODEL)
