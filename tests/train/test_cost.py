"""Operations and memory of a step: counted by hand on a linear map, and without effect on what is trained."""

import copy

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

    def check(self, rows):
        pass

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


class Deep(Fit):
    """Squares, each kept for the backward pass by autograd alone; ``freed`` more tensors that nothing keeps."""

    def __init__(self, depth, n, freed=0):
        super().__init__()
        self.depth, self.freed = depth, freed
        self.x = torch.full((n,), 0.5, requires_grad=True)

    def step(self, rows, progress):
        self.x.grad = None  # of the step before
        x = self.x
        for _ in range(self.depth):
            x = x.square()
        for _ in range(self.freed):
            torch.ones_like(self.x)
        x.sum().backward()
        return {"loss": x.detach()[:0].clone()}


class Shrinking(Fit):
    def step(self, rows, progress):
        out = super().step(rows, progress)
        self.ballast = 0
        return out


def step_bytes(objective, n_steps=2):
    costed = Costed(objective, torch.device("cpu"))
    for i in range(n_steps):
        costed.step(torch.randn(5, 8), i / 2)
    return costed.step_bytes


def test_memory_of_a_step_is_the_most_that_its_tensors_take_at_once():
    n = 100_000
    assert 4 * n <= step_bytes(Fit(ballast=n)) < 4 * n + 10_000
    assert step_bytes(Deep(6, n)) == step_bytes(Deep(6, n, freed=9))
    assert abs(step_bytes(Deep(9, n)) - step_bytes(Deep(6, n)) - 3 * 4 * n) < 100  # what autograd alone holds counts
    assert step_bytes(Shrinking(ballast=n)) < 10_000  # the first step's most is not the second's
    # a gradient held from the step before is not new, and giving it back makes room
    assert abs(step_bytes(Deep(6, n), n_steps=1) - step_bytes(Deep(6, n)) - 4 * n) < 100


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
