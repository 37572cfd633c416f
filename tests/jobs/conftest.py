"""One tiny workspace for every test of a command."""

from pathlib import Path

import pytest
import workspace as ws


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> ws.Workspace:
    """Shared between tests: leave its files as they are."""
    return ws.make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def adapted(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run. Leave it as it is."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    assert workspace.adapt(out, "--quiet") == 0
    return out
