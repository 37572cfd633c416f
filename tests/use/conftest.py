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


@pytest.fixture(scope="session")
def several_folder(workspace: ws.Workspace) -> Path:
    """A run through four SAEs, three of them in one layer. Leave its files as they are."""
    where = ["layers.2.resid_post", "layers.1.resid_pre", "layers.1.mlp_out", "layers.1.attn_z"]
    saes = [ws.write_sae(workspace.root / "several" / name, layer=int(name[7]), seed=i) for i, name in enumerate(where)]
    out = workspace.root / "several-run"
    assert workspace.adapt(out, "--quiet", sae=saes, hookpoint=where, tokens=8 * ws.CONTEXT) == 0
    return out


@pytest.fixture(scope="session")
def several(several_folder: Path) -> LoadedRun:
    return saelora.load(several_folder)
