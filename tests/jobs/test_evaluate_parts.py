"""saelora evaluate --parts: which parts are measured, where their results go, and what is refused beforehand."""

import json
import shutil
from pathlib import Path

import pytest
import workspace as ws

from saelora.cli import main
from saelora.errors import InputError
from saelora.jobs.evaluate import ALL, Config, parts_of
from saelora.train.distributed import Group

FEW = {"eval_tokens": 3 * ws.CONTEXT}


@pytest.fixture
def run(adapted: Path, tmp_path: Path) -> Path:
    """A finished run that a test may write into."""
    return Path(shutil.copytree(adapted, tmp_path / "run"))


def evaluate(*words: str, **options: object) -> int:
    return main(["evaluate", *words, *ws.as_flags({**FEW, **options}), "--quiet"])


def line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("saelora: ")
    assert said.count("\n") == 1
    return said


def test_parts_are_written_beside_the_adapter_with_what_they_were_measured_on(run: Path) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drift", "loss") == 0
    assert sorted(path.name for path in (run / "evals").iterdir()) == ["drift.json", "loss.json"]
    written = json.loads((run / "evals" / "drift.json").read_text())
    assert written["part"] == "drift"
    assert written["about"]["saes"][0]["hookpoint"] == "layers.1.resid_post"
    assert written["options"]["eval_tokens"] == FEW["eval_tokens"]
    assert {"versions", "commit", "device"} <= written["environment"].keys()
    assert written["seconds"] >= 0
    assert len(written["result"]["layers"]) == ws.N_LAYERS


def test_the_loss_alone_leaves_the_adapter_s_folder_as_it_was(run: Path) -> None:
    before = ws.files_in(run)
    assert evaluate("--adapter", str(run)) == 0
    assert ws.files_in(run) == before


def test_json_holds_every_part_under_its_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    assert evaluate("--adapter", str(run), "--parts", "loss", "drift", "--json", out=out) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads(out.read_text())
    assert {"ce_base", "gap_closed", "drift", "about"} <= results.keys()
    assert not (run / "evals").exists()


def test_out_without_json_is_a_folder(run: Path, tmp_path: Path) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drift", out=tmp_path / "there") == 0
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["drift.json"]
    assert not (run / "evals").exists()


def test_what_was_measured_is_not_overwritten_unasked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evals").mkdir()
    (run / "evals" / "drift.json").write_text("mine")
    assert evaluate("--adapter", str(run), "--parts", "loss", "drift") == 2
    assert "drift.json exists" in line(capsys)
    assert [path.name for path in (run / "evals").iterdir()] == ["drift.json"]
    assert (run / "evals" / "drift.json").read_text() == "mine"
    assert evaluate("--adapter", str(run), "--parts", "drift", "--overwrite") == 0
    assert json.loads((run / "evals" / "drift.json").read_text())["part"] == "drift"


def test_a_part_beyond_the_loss_needs_an_adapter(workspace: ws.Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"sae": workspace.sae, "data": workspace.data, **ws.COMMON}
    assert evaluate(str(workspace.model), "--parts", "tokens", **flags) == 2
    assert "--adapter" in line(capsys)


def test_an_unknown_part_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drfit") == 2
    assert "'drfit'" in line(capsys)


def test_all_stands_for_what_needs_nothing_further() -> None:
    assert tuple(parts_of(Config(adapter="x", parts=("all",)))) == ALL
    assert parts_of(Config(adapter="x", parts=("steering", "tokens", "loss"))) == ["loss", "tokens", "steering"]


def test_further_parts_run_in_one_process() -> None:
    with pytest.raises(InputError, match="one process"):
        parts_of(Config(adapter="x", parts=("drift",)), Group(rank=0, world=2))


def test_terminal_shows_each_part_s_findings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--adapter", str(run), "--parts", "loss", "drift") == 0
    said = capsys.readouterr().out
    assert "spliced + adapted" in said
    assert said.index("DRIFT") > said.index("spliced + adapted")
