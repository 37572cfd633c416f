"""Shapes on the core's signatures are checked in every test; tiny models of each family, and a batch to run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import: where triton is installed it decodes on GPUs only

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from typecheck import install

CHECKED = [f"saelora.{room}" for room in ("core", "models", "data", "saes", "objectives", "sae_training")]
install(CHECKED)

import families  # noqa: E402
import workspace as ws  # noqa: E402

# groups that begin first: no worker ends long after the other
SLOW = ("real", "distributed", "compare", "launch", "browser")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run in one worker, which makes what they share once; files of one named group do so together."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] not in SLOW)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test starts from the same random state, fixtures included: what it finds hangs on no test before it."""
    torch.manual_seed(0)


@pytest.fixture(params=families.NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Every family in turn. Shared between tests: leave it as it was."""
    return families.tiny(request.param)


@pytest.fixture
def fresh() -> Callable[[nn.Module | str], nn.Module]:
    """A copy that a test may change."""
    return lambda model: copy.deepcopy(families.tiny(model) if isinstance(model, str) else model)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shapes are checked: of what is compiled, the checks would be compiled too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> ws.Workspace:
    """A tiny model, its text and an SAE on disk. Shared between tests: leave its files as they are."""
    return ws.make_workspace(tmp_path_factory.mktemp("workspace"))


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    attention: Tensor
    replaced: Tensor  # what a splice that spares BOS, EOS and padding replaces, written down independently


@pytest.fixture
def batch() -> Batch:
    """Three rows: whole, padded left, padded right; EOS and BOS inside rows too. Longer than every sliding window."""
    pad, bos, eos = families.PAD, families.BOS, families.EOS
    rows = [
        [bos, 5, 9, 33, eos, bos, 12, 50, 7, 60],
        [pad, pad, pad, bos, 44, 8, 21, 3, eos, 17],
        [bos, 20, 61, 4, 4, 38, 11, 29, pad, pad],
    ]
    attention = [[int(token != pad) for token in row] for row in rows]
    replaced = [[token not in (pad, bos, eos) for token in row] for row in rows]
    return Batch(torch.tensor(rows), torch.tensor(attention), torch.tensor(replaced))
