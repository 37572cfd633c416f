"""Rows per step where none are given."""

import pytest

from saelora.config import build
from saelora.jobs import adapt
from saelora.jobs.training_options import with_batch_rows


@pytest.mark.parametrize(
    ("device", "options", "rows"),
    [
        ("cpu", {}, 1),
        ("mps", {}, 1),
        ("cuda", {}, 64),  # 15M tokens: 16,384 of them at a time
        ("cuda", {"context": 1024}, 16),
        ("cuda", {"tokens": "1M"}, 15),  # 250 steps at least
        ("cuda", {"tokens": 51_200}, 1),
        ("cuda", {"batch_rows": 3}, 3),
        ("cpu", {"batch_rows": 3}, 3),
    ],
)
def test_rows_per_step_follow_device_and_length(device: str, options: dict, rows: int) -> None:
    made = with_batch_rows(build(adapt.Config, options), device)
    assert made.batch_rows == rows
    assert made.given == {*options}
