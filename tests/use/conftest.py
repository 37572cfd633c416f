"""Finished runs on the tiny workspace, loaded once."""

from pathlib import Path

import pytest

import saelora
import workspace as ws
from saelora.use.run import LoadedRun


@pytest.fixture(scope="session")
def run_folder(workspace: ws.Workspace) -> Path:
    """A run of adapt. Leave its files as they are."""
    out = workspace.root / "used-run"
    assert workspace.adapt(out, "--quiet") == 0
    return out


@pytest.fixture(scope="session")
def run(run_folder: Path) -> LoadedRun:
    return saelora.load(run_folder)
