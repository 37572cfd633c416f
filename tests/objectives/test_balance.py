"""What is watched of a batch's SAEs equals plain sums, whatever the activations' scale."""

import pytest
import torch

from saelora.models.hookpoints import Hookpoint
from saelora.objectives.balance import BatchErrors


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_figures_of_a_batch_are_plain_sums_over_its_replaced_positions(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x, noise = (scale * torch.randn(2, 5, 8, generator=draw) for _ in range(2))
    mask = torch.rand(2, 5, generator=draw) > 0.3
    recon = (x + 0.5 * noise).requires_grad_()
    errors = BatchErrors(1.0)
    errors(Hookpoint(1), x, torch.zeros(2, 5, 3), recon, mask)
    x_ND, error_N = x[mask].double(), (recon - x)[mask].detach().double().square().sum(-1)
    relative = (error_N / x_ND.square().sum(-1)).mean()
    fvu = error_N.sum() / (x_ND - x_ND.mean(0)).square().sum()
    mine, whole = errors.fvu()
    assert errors.relative().item() == pytest.approx(relative.item(), rel=1e-5)
    assert [mine.item(), whole.item()] == pytest.approx([fvu.item()] * 2, rel=1e-5)
    assert torch.autograd.grad(mine, recon)[0][~mask].count_nonzero() == 0
