"""What several files' tests of commands look at: one finished run, one finished comparison."""

import shutil
from pathlib import Path

import pytest
import yaml

import draft
import workspace as ws
from saelora.cli import main


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of runs that a test makes for itself; those of shared runs are there before this."""
    draft.without_rendering(monkeypatch)


@pytest.fixture(scope="session")
def adapted(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run. Leave it as it is."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    assert workspace.adapt(out, "--quiet") == 0
    return out


@pytest.fixture
def run(adapted: Path, tmp_path: Path) -> Path:
    """A finished run that a test may write into."""
    return Path(shutil.copytree(adapted, tmp_path / "run"))


@pytest.fixture(scope="session")
def compared(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished comparison and its recipe. Leave them as they are; files that use it are of one xdist group."""
    root = tmp_path_factory.mktemp("compare")
    recipe = root / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(ws.recipe_of(workspace, title="which <b>way</b>?"), sort_keys=False))
    assert main(["compare", str(recipe), "--out", str(root / "out"), "--quiet"]) == 0
    return root / "out", recipe
