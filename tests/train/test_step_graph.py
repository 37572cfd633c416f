"""A step as a CUDA graph: on a GPU the bits of the step as it is, elsewhere that step."""

import pytest
import torch
from torch import Tensor

from method_steps import METHODS, N_STEPS, batches, objective, trained
from saelora.errors import InputError
from saelora.train.step_graph import StepGraph

CPU = torch.device("cpu")


def test_elsewhere_a_step_is_called_as_it_is() -> None:
    seen: list[Tensor] = []

    def step(rows: Tensor) -> dict[str, Tensor]:
        seen.append(rows)
        return {"loss": torch.tensor(float(len(seen)))}

    graph, rows = StepGraph(step, CPU), torch.zeros(2, 3, dtype=torch.long)
    assert [graph(rows)["loss"].item() for _ in range(4)] == [1, 2, 3, 4]
    assert all(one is rows for one in seen)
    assert not graph.recorded


def test_a_graph_that_cannot_be_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"a step cannot be made a CUDA graph: the model is not on an NVIDIA GPU; use"):
        StepGraph(lambda rows: {}, CPU, "on")
    with pytest.raises(InputError, match="not on an NVIDIA GPU"), objective([METHODS["lora"]], graph="on"):
        pass


def run(graph: str) -> tuple[list[dict[str, float]], list[Tensor], bool]:
    """Steps on a GPU, the last on fewer rows, with dropout and a checkpoint in between."""
    methods = [METHODS["lora"], METHODS["sae, kl+mse"]]
    torch.manual_seed(3)
    with objective(methods, "cuda", dropout=0.2, graph=graph) as one:
        rows = [*batches() * 2, batches()[0][:1]]
        losses = []
        for i, each in enumerate(rows):
            if i == N_STEPS + 2:
                one.load_state_dict(one.state_dict())
            losses.append({key: value.item() for key, value in one.step(each, i / len(rows)).items()})
        weights = [weight.clone() for i in range(len(methods)) for weight in trained(one, i).values()]
        return losses, weights, one.graph.recorded


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_step_has_the_bits_of_the_step_as_it_is() -> None:
    as_it_is, replayed = (run(graph) for graph in ("off", "on"))
    assert replayed[0] == as_it_is[0]
    assert all(torch.equal(a, b) for a, b in zip(replayed[1], as_it_is[1], strict=True))
    assert (as_it_is[2], replayed[2]) == (False, True)
