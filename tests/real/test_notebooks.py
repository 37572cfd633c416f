"""The notebooks, and Python in the pages, run from top to bottom on the default model with few tokens."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# the last one wants the run that the first one leaves
NOTEBOOKS = ("adapt_and_look", "sweep_and_plot", "steer_and_serve")
PAGES = ("README.md", "docs/tutorial.md", "docs/how-to/use.md")  # serve.md wants a server: the third notebook has one
pytestmark = [pytest.mark.real, pytest.mark.timeout(600), pytest.mark.xdist_group("real")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def executed(name: str, folder: Path) -> list[Any]:
    """A notebook's cells after it has run."""
    nbclient = pytest.importorskip("nbclient", reason="executes notebooks; in the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="reads notebooks; in the extra dev")
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    cells: list[Any] = client.execute().cells
    return cells


def shown(cells: list[Any]) -> str:
    return json.dumps([cell.get("outputs", []) for cell in cells])


def test_notebooks_are_kept_without_outputs_and_with_titles() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(found) == set(NOTEBOOKS)
    for book in found.values():
        assert book["cells"][0]["source"][0].startswith("# ")
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book["cells"])


def test_adapt_and_look(folder: Path) -> None:
    cells = executed("adapt_and_look", folder)
    results = json.loads((folder / "notebook-run" / "results.json").read_text())
    assert str(round(results["ce_adapted"], 4)) in shown(cells)
    assert (folder / "notebook-run" / "report.html").is_file()


def test_steer_and_serve(folder: Path) -> None:
    if not (folder / "notebook-run").is_dir():
        executed("adapt_and_look", folder)
    cells = executed("steer_and_serve", folder)
    assert "adapted_clean" in shown(cells)  # what the server lists


def test_sweep_and_plot(folder: Path) -> None:
    cells = executed("sweep_and_plot", folder)
    points = json.loads((folder / "notebook-sweep" / "results.json").read_text())["points"]
    assert {point["rank"] for point in points} == {4, 64}
    assert all(repr(point["gap_closed"]) in shown(cells) for point in points)


@pytest.mark.parametrize("page", PAGES)
def test_python_in_a_page_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (folder / "notebook-run").is_dir():
        executed("adapt_and_look", folder)
    if not (folder / "saelora-demo").exists():
        (folder / "saelora-demo").symlink_to("notebook-run")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, page, "exec"), names)
    assert "saelora" in names
