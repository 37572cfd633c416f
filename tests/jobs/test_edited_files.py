"""A file of a finished run that was edited by hand is refused in one line, or does no harm."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workspace as ws
from saelora.cli import main
from saelora.errors import InputError
from saelora.evals.loss_result import RunResult
from saelora.manifest import Manifest
from saelora.reporting.card import card
from saelora.reporting.text import loss_table

OTHERS: list[Any] = [None, True, -1, "x", [], {}, [1, "a"], {"a": 1}]


def spoilt(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of plain data, each with one entry gone or of another kind."""
    for path in places(value):
        for other in ("gone", *OTHERS):
            made = copy.deepcopy(value)
            box = made
            for key in path[:-1]:
                box = box[key]
            if other == "gone":
                del box[path[-1]]
            else:
                box[path[-1]] = other
            yield f"{path} {other!r}", made


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        yield (key,)
        yield from ((key, *rest) for rest in places(below))


def read(adapted: Path, name: str) -> dict[str, Any]:
    return json.loads((adapted / name).read_text())


def test_what_runs_write_is_accepted(adapted: Path) -> None:
    manifest, results = read(adapted, "saelora.json"), read(adapted, "results.json")
    assert Manifest.read(manifest, adapted, "").to_json() == manifest
    assert RunResult.read(results, adapted, "").to_json() == results


def test_edited_results_are_refused_or_can_be_shown(adapted: Path) -> None:
    manifest, refused = Manifest.read(read(adapted, "saelora.json"), "saelora.json", ""), 0
    failed = []
    for what, results in spoilt(read(adapted, "results.json")):
        try:
            result = RunResult.read(results, "results.json", "run it anew")
        except InputError as error:
            refused += "\n" not in str(error)
            continue
        try:
            loss_table(result)
            card(manifest, result)
        except Exception as error:
            failed.append(f"{what}: {error!r}")
    assert not failed
    assert refused > 300


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("saelora.json", "model", "x", "model is text ('x'), expected an object"),
        ("saelora.json", "saes", ["x"], "saes[0] is text"),
        ("saelora.json", "config", [], "config is a list"),
        ("results.json", "ce_sae", "3.4", "ce_sae is text ('3.4'), expected a number"),
        ("results.json", "ci95", {"ce_gap": [1]}, "ci95.ce_gap is a list, expected a list of two numbers"),
        ("results.json", "history", {}, "history is an object, expected a list"),
    ],
)
def test_the_line_names_file_and_entry(
    adapted: Path, tmp_path: Path, name: str, key: str, value: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in adapted.iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    (run / name).write_text(json.dumps({**read(adapted, name), key: value}))
    before = ws.files_in(run)
    assert main(["report", str(run), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{run / name} is not as saelora writes it" in said
    assert words in said
    assert ws.files_in(run) == before
