"""Exchanges between two processes, and the loop in both: they agree on every step, stop and random number."""

import json
import math
import signal
from typing import Any

import pytest
import torch

from saelora.core.group import ALONE, Group
from saelora.errors import InputError
from saelora.train.checkpoint import load_checkpoint
from saelora.train.distributed import current_group

pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(runs: Any) -> list[dict[str, Any]]:
    """What both processes noticed (group_promises.py)."""
    return [noticed["promises"] for noticed in runs.noticed]


def test_sums_are_the_same_everywhere_and_one_process_s_nan_is_everyone_s(found: list[dict[str, Any]]) -> None:
    for one in found:
        scalar, matrix, nan, doubles = one["sum"]
        assert (scalar, matrix) == (3.0, [[11.0, 11.0], [11.0, 11.0]])
        assert math.isnan(nan)
        assert doubles == [3.0, 3e-12]


def test_largest_value_wins_each_place(found: list[dict[str, Any]]) -> None:
    assert [one["max"] for one in found] == [[1, 5, 0]] * 2


def test_work_of_one_process_and_its_refusal_reach_all(found: list[dict[str, Any]]) -> None:
    assert [(one["on"], one["refused"]) for one in found] == [("from 1", "no good")] * 2


def test_pieces_dealt_out_come_back_in_order_and_once(found: list[dict[str, Any]]) -> None:
    assert found[0]["turns"] == [[0, True], [2, True], [4, True]]
    assert found[1]["turns"] == [[1, True], [3, True], [4, False]]
    for one in found:
        assert one["in turn"] == [0, 1, 2, 3, 4]
        assert one["tensors in turn"] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]
    assert [one["gathered on main"] for one in found] == [[0, 1], []]


def test_shares_of_a_batch_count_every_row_once(found: list[dict[str, Any]]) -> None:
    for i, rows in enumerate(([0], [0, 1, 2, 3, 4])):
        counted = [row for one in found if one["weights"][i] == 1.0 for row in one["shares"][i][0]]
        assert counted == rows
    assert sorted(one["weights"][0] for one in found) == [0.0, 1.0]


def test_processes_draw_different_numbers_and_the_main_one_those_it_draws_alone(found: list[dict[str, Any]]) -> None:
    main, other = (one["whole"] for one in found)
    assert not set(main) & set(other)
    torch.manual_seed(0)
    assert main == [float(torch.rand(())) for _ in range(8)]


def test_signal_to_one_process_stops_all_at_one_step(found: list[dict[str, Any]]) -> None:
    assert [one["stopped"] for one in found] == [[signal.SIGTERM, 3]] * 2


def test_resumed_processes_go_on_with_their_own_random_numbers(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["resumed"]
        assert one["parts"] == one["whole"]


def test_loss_that_is_not_finite_stops_all_and_keeps_the_last_good_state(
    found: list[dict[str, Any]], runs: Any
) -> None:
    assert all(one["failed"].startswith("training stopped at step 4 of 8: KL is nan") for one in found)
    kept = load_checkpoint(runs.root / "promises" / "failing" / "checkpoints")
    assert kept is not None
    assert kept[1]["step"] == 3


def test_metrics_are_written_once(runs: Any) -> None:
    assert [json.loads(line)["step"] for line in (runs.root / "promises" / "parts" / "metrics.jsonl").open()] == list(
        range(1, 9)
    )


def test_alone_every_exchange_gives_back_what_it_was_given() -> None:
    rows = torch.arange(6).view(3, 2)
    assert current_group() == ALONE
    assert ALONE.share(rows) == (pytest.approx(rows), 1.0)
    assert (ALONE.max(3, 1), ALONE.on_main(lambda: 4), ALONE.gather(5)) == ([3, 1], 4, [5])
    assert list(ALONE.turns(2)) == [(0, True), (1, True)]
    assert ALONE.in_turn([1, 2]) == [1, 2]
    ALONE.check_rows(1)


@pytest.mark.parametrize(("rows", "world"), [(1, 2), (7, 8)])
def test_fewer_rows_than_processes_name_the_remedy(rows: int, world: int) -> None:
    with pytest.raises(InputError, match=f"batch_rows is {rows} for {world} processes.*--batch-rows {world} or a"):
        Group(0, world).check_rows(rows)
