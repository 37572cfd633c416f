"""One tiny workspace for every test with several processes; the one of the commands' tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))

import workspace as ws


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> ws.Workspace:
    """Shared between tests: leave its files as they are."""
    return ws.make_workspace(tmp_path_factory.mktemp("workspace"))
