"""Checkpoints are whole or absent."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from saelora.errors import InputError
from saelora.train.checkpoint import KEPT, load_checkpoint, save_checkpoint


def state(value: float, size: int = 100) -> dict[str, Any]:
    return {"weights": torch.full((size,), value), "plain": {"steps": 3, "names": ["a"]}}


def saved(folder: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(folder, step, state(step), {"seconds": 0.5})
    return folder


def value_of(folder: Path) -> float:
    found = load_checkpoint(folder)
    assert found is not None
    assert found[0]["weights"].unique().item() == found[1]["step"]
    return found[0]["weights"][0].item()


def test_state_and_meta_come_back_as_they_were(tmp_path: Path) -> None:
    found = load_checkpoint(saved(tmp_path / "c", 7))
    assert found is not None
    torch.testing.assert_close(found[0]["weights"], state(7)["weights"], rtol=0, atol=0)
    assert found[0]["plain"] == state(7)["plain"]
    assert (found[1]["step"], found[1]["seconds"]) == (7, 0.5)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 30, 4_000_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-04000000"]
    assert KEPT == 2
    assert value_of(tmp_path) == 4_000_000


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    save_checkpoint(tmp_path, 5, state(6), {})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["weights"][0] == 6


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    assert load_checkpoint(tmp_path) is None


def _truncate(newest: Path) -> None:
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1])


def _flip(newest: Path) -> None:
    data = bytearray((newest / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.pt").write_bytes(data)


def _other_sha(newest: Path) -> None:
    meta = json.loads((newest / "checkpoint.json").read_text())
    (newest / "checkpoint.json").write_text(json.dumps({**meta, "sha256": "0" * 64}))


DAMAGE = {
    "truncated": _truncate,
    "flipped": _flip,
    "other sha": _other_sha,
    "no state": lambda newest: (newest / "state.pt").unlink(),
    "no meta": lambda newest: (newest / "checkpoint.json").unlink(),
    "half a meta": lambda newest: (newest / "checkpoint.json").write_text('{"sha2'),
    "meta of another kind": lambda newest: (newest / "checkpoint.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    saved(tmp_path, 1, 2)
    DAMAGE[damage](tmp_path / "step-00000002")
    assert value_of(tmp_path) == 1


def test_half_written_folder_is_ignored(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / ".part-1").mkdir()
    (tmp_path / ".part-1" / "state.pt").write_bytes(b"x")
    assert value_of(tmp_path) == 1


@contextmanager
def files_limited_to(n_bytes: int) -> Iterator[None]:
    """What a full disk does: a write beyond n_bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_line_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    with files_limited_to(20_000), pytest.raises(InputError, match="free some disk space") as caught:
        save_checkpoint(tmp_path, 3, state(3, size=100_000), {})
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert value_of(tmp_path) == 2


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, state(1), {})


def test_a_checkpoint_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    """Even with a matching checksum: weights_only refuses pickled objects."""
    import hashlib

    saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002"
    torch.save({"weights": Path("x")}, path / "state.pt")
    digest = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps({"step": 2, "sha256": digest}))
    assert value_of(tmp_path) == 1
