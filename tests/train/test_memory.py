"""What a backward pass holds, counted against a sum by hand."""

import resource
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from saelora.errors import InputError
from saelora.train import memory
from saelora.train.memory import LIMIT, free_bytes, saved_bytes


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


CPU = torch.device("cpu")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_the_environments_limit_is_on_all_that_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, str(resident() + 64 * 2**20))
    assert 32 * 2**20 < free_bytes(CPU) <= 70 * 2**20
    monkeypatch.setenv(LIMIT, "1M")
    assert free_bytes(CPU) == 0


@pytest.mark.parametrize("text", ["much", "-1G", "0", "nan", "G"])
def test_a_limit_that_is_no_amount_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(InputError, match="8G or 500M"):
        free_bytes(CPU)


def test_a_limit_on_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        assert free_bytes(CPU) <= 2**30
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("version", [1, 2])
def test_the_strictest_control_group_on_the_way_counts(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path if version == 2 else tmp_path / "memory"
    names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    for below, limit in (("job", "max" if version == 2 else str(2**62)), ("", str(900 * 2**20))):
        (root / below).mkdir(parents=True, exist_ok=True)
        (root / below / f"memory.{names[0]}").write_text(limit)
        (root / below / f"memory.{names[1]}").write_text(str(850 * 2**20))
        (root / below / "memory.stat").write_text(f"inactive_file {30 * 2**20}\n")
    group = tmp_path / "of_process"
    group.write_text("0::/job\n" if version == 2 else "5:cpu,memory:/job\n3:cpuset:/\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", group)
    assert free_bytes(CPU) == 80 * 2**20
