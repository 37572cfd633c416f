"""The garbage collector rests while a block runs, and is afterwards as it was."""

import gc
from collections.abc import Iterator

import pytest

from saelora.collector import resting


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


def test_no_collection_inside_and_the_collector_on_afterwards() -> None:
    with resting():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_block_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ValueError), resting():
        raise ValueError
    assert gc.isenabled()


def test_blocks_in_one_another_rest_until_the_outer_one_ends() -> None:
    with resting():
        with resting():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with resting(keep=True):
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_kept_is_left_out_of_later_collections(keep: bool) -> None:
    with resting(keep=keep):
        there: list[object] = []
        there.append(there)
    assert (gc.get_freeze_count() > 0) is keep
    assert any(each is there for each in gc.get_objects()) is not keep
