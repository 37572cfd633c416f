"""Operations and memory of a step: counted by hand on a linear map, and without effect on what is trained."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saelora.train.cost import Costed


class Fit:
    """Fits a linear map [d_in, d_out] to rows of numbers by least squares."""

    def __init__(self, d_in=8, d_out=16, ballast=0):
        torch.manual_seed(0)
        self.linear, self.ballast = nn.Linear(d_in, d_out, bias=False), ballast
        self.optimizer = torch.optim.SGD(self.linear.parameters(), lr=0.1)

    def step(self, rows, progress):
        held = torch.ones(self.ballast)
        loss = self.linear(rows).square().mean() + held.sum() * 0
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def state_dict(self):
        return {"weight": self.linear.weight.detach().clone()}

    def load_state_dict(self, state):
        self.linear.weight.data.copy_(state["weight"])


class Collecting(Fit):
    """Happens to be where Python collects its garbage."""

    def step(self, rows, progress):
        gc.collect()
        return super().step(rows, progress)


def test_operations_of_a_linear_maps_step_are_those_counted_by_hand():
    costed = Costed(Fit(), torch.device("cpu"))
    rows = torch.randn(5, 8)
    for i in range(3):
        costed.step(rows, i / 3)
    forward_and_weight_gradient = 2 * 2 * 5 * 8 * 16  # the input needs no gradient
    assert costed.flops_per_token == forward_and_weight_gradient / rows.numel()


@pytest.mark.parametrize(
    ("run", "by_hand"),
    [
        (lambda x: x.new_zeros(6, 6).addmm_(x[0], x[0].T), 2 * 6 * 4 * 6),
        (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), 2 * 2 * 6 * 4 * 6 * 3),
    ],
    ids=["added in place", "attention on a CPU"],
)
def test_products_that_torchs_counter_leaves_out_are_counted(run, by_hand):
    class Once(Fit):
        def step(self, rows, progress):
            run(torch.randn(3, 6, 4))
            return {}

    costed = Costed(Once(), torch.device("cpu"))
    costed.step(torch.zeros(1, 1), 0.0)
    assert costed.flops_per_token == by_hand


def test_memory_of_a_step_is_what_it_holds_beyond_what_was_there():
    n = 40_000_000  # 160 MB of ones
    costed = Costed(Collecting(ballast=n), torch.device("cpu"))
    for i in range(2):
        garbage = [torch.ones(2 * n)]  # its room, given back during the step, would hide what the step takes
        garbage.append(garbage)
        del garbage
        costed.step(torch.randn(5, 8), i / 2)
    assert 3.8 * n < costed.step_bytes < 6 * n  # the system rounds resident memory to some pages


def test_counting_changes_no_weight_and_survives_a_checkpoint():
    rows = torch.randn(4, 5, 8)
    plain, costed = Fit(), Costed(Fit(), torch.device("cpu"))
    for i, batch in enumerate(rows):
        plain.step(batch, i / 4)
        costed.step(batch, i / 4)
    assert torch.equal(plain.linear.weight, costed.objective.linear.weight)
    state = copy.deepcopy(costed.state_dict())
    resumed = Costed(Fit(), torch.device("cpu"))
    resumed.load_state_dict(state)
    assert resumed.state_dict()["cost"] == costed.state_dict()["cost"]
    resumed.step(torch.randn(2, 8), 0.5)  # another size: the measured one stays
    assert resumed.flops_per_token == costed.flops_per_token
