"""A sweep on two processes: each takes groups of its own, and the table is one process's."""

import json
from pathlib import Path
from typing import Any

import pytest
import workspace as ws
import yaml
from launch import finished

from saelora.cli import main

pytestmark = pytest.mark.xdist_group("distributed")


def table(out: Path) -> list[dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())["points"]
    varying = ("environment", "seconds_group")
    return [{k: v for k, v in row.items() if k not in varying} for row in rows]


def test_groups_are_spread_over_processes_and_the_table_is_the_same(workspace: ws.Workspace, tmp_path: Path) -> None:
    own = {k: v for k, v in ws.ADAPT.items() if k not in ("history_points", "history_tokens", "rank")}
    named = {"model": str(workspace.model), "sae": [str(workspace.sae)], "data": str(workspace.data)}
    base = {**own, **named, "tokens": 8 * ws.CONTEXT}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"base": base, "grid": {"seed": [0, 1, 2], "rank": [1, 2]}}))
    code, printed, said = finished("-m", "saelora", "sweep", str(recipe), "--out", str(tmp_path / "two"))
    assert code == 0, said[-3000:]
    assert printed.count("gap_closed") == 1  # the main process alone prints
    assert "group 1 of 2" in said  # of three groups the main process has two
    assert "group 3" not in said
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "one"), "--quiet"]) == 0
    assert table(tmp_path / "two") == table(tmp_path / "one")
    assert len(table(tmp_path / "one")) == 6
