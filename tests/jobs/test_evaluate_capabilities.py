"""saelora evaluate --parts capabilities and saebench, from the command line."""

import json
import shutil
from pathlib import Path

import pytest

from saelora.cli import main
from workspace import short_tasks

pytest.importorskip("lm_eval", reason="the extra capabilities is not installed")


def test_the_example_tasks_run_offline_and_tell_clean_from_spliced(
    adapted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(adapted, tmp_path / "run")
    tasks = short_tasks(tmp_path / "tasks")
    flags = ["--task-folder", str(tasks), "--tasks", "sotu_last_word", "--limit", "3"]
    given = ["evaluate", "--adapter", str(run), "--parts", "capabilities", *flags, "--eval-tokens", "64", "--json"]
    assert main(given) == 0
    out = capfd.readouterr().out
    found = json.loads(out)["capabilities"]
    assert json.loads((run / "evals" / "capabilities.json").read_text())["result"] == found
    assert found["limit"] == 3
    perplexity = next(row for row in found["tasks"] if row["metric"] == "perplexity")["scores"]
    assert perplexity["base"]["value"] != perplexity["sae"]["value"]
    assert perplexity["sae"]["value"] != perplexity["adapted"]["value"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--parts", "capabilities"], "--tasks"),
        (["--parts", "capabilities", "--tasks", "x", "--limit", "0"], "limit is 0, expected 1 or more"),
        (["--parts", "capabilities", "--tasks", "x", "--task-folder", "nowhere"], "--task-folder nowhere is no folder"),
        (["--parts", "saebench", "--saebench-data", "nowhere"], "--saebench-data nowhere is no folder"),
        (["--parts", "saebench", "--saebench-python", "no-such-python"], "is no program"),
        (["--parts", "saebench", "--saebench-evals", "ravel"], "expected one of core"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(
    adapted: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--adapter", str(adapted), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "loading" not in error
    assert error.count("\n") == 1
