"""What a backward pass holds, counted against a sum by hand."""

import torch
import torch.nn.functional as F

from saelora.train.memory import free_bytes, saved_bytes


def test_saved_bytes_are_those_of_the_activations_and_not_of_the_weights() -> None:
    weight = torch.randn(8, 16, dtype=torch.float64)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    # x @ weight keeps the weight alone, gelu its input, square its input
    assert saved_bytes(lambda: F.gelu(x @ weight).square(), [weight]) == 2 * 5 * 16 * 8
    assert saved_bytes(lambda: F.gelu(x @ weight).square(), []) == 2 * 5 * 16 * 8 + 8 * 16 * 8


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    assert saved_bytes(lambda: (x * 2).exp(), []) == 6 * 4 * 4
    y = torch.randn(6, 4, requires_grad=True)

    def twice() -> torch.Tensor:
        z = y.exp()
        return z.square() + z.view(24).square().view(6, 4)

    assert saved_bytes(twice, []) == 6 * 4 * 4


def test_without_gradient_nothing_is_saved() -> None:
    assert saved_bytes(lambda: torch.randn(3).exp(), []) == 0


def test_some_memory_is_free() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**45
