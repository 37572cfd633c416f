"""Files of every version are read and written again as they were; what was edited by hand is named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from saelora.errors import InputError
from saelora.evals.loss_result import RunResult, SAEResult
from saelora.manifest import Manifest, PartFile
from saelora.records import Interval, Number, Record
from saelora.reporting.comparison.run import ComparisonResult
from saelora.reporting.sweep_point import SweepPoint, SweepResult

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "results"
KINDS: dict[Path, type[Record]] = {
    **{path: SweepResult for path in DOCS.glob("*/results.json") if path.parent.name != "head_to_head"},
    DOCS / "head_to_head" / "results.json": ComparisonResult,
    **dict.fromkeys(DOCS.glob("evaluation/*/results.json"), RunResult),
    **dict.fromkeys(DOCS.glob("evaluation/*/saelora.json"), Manifest),
    **dict.fromkeys(DOCS.glob("evaluation/*/evals/*.json"), PartFile),
    **dict.fromkeys((ROOT / "src/saelora/package_data").glob("*/results.json"), SAEResult),
}


class Box(Record):
    n: Number
    text: str | None = None
    box: "Box | None" = None
    interval: Interval = [0.0, 1.0]
    at: dict[str, int] = {}
    first: int | bool = 0


@pytest.mark.parametrize("path", KINDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_an_older_version_is_read_and_written_again_as_it_was(path: Path) -> None:
    read = KINDS[path].read(json.loads(path.read_text()), path, "")
    assert json.dumps(read.to_json(), sort_keys=True) == json.dumps(json.loads(path.read_text()), sort_keys=True)


def test_there_are_older_files_of_every_kind() -> None:
    assert set(KINDS.values()) == {SweepResult, ComparisonResult, RunResult, Manifest, PartFile, SAEResult}


def test_what_is_absent_stays_so_and_what_no_field_names_is_kept() -> None:
    for value in ({"n": 1}, {"n": 1.5, "text": None}, {"n": 1, "new": [1, {"a": None}], "box": {"n": 2, "other": 3}}):
        assert Box.model_validate(value).to_json() == value
    assert type(Box.model_validate({"n": 1}).to_json()["n"]) is int


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "it is a list, expected an object"),
        ({}, "n is missing"),
        ({"n": True}, "n is true or false (True), expected a number"),
        ({"n": None}, "n is null, expected a number"),
        ({"n": 1, "text": 2}, "text is a whole number (2), expected text"),
        ({"n": 1, "box": {"n": "x"}}, "box.n is text ('x'), expected a number"),
        ({"n": 1, "interval": [1]}, "interval is a list, expected a list of two numbers"),
        ({"n": 1, "interval": [1, None]}, "interval[1] is null, expected a number"),
        ({"n": 1, "first": "x"}, "first is text ('x'), expected a whole number"),
        ({"n": 1, "at": {"a": 1.5}}, "at.a is a number (1.5), expected a whole number"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Box.read(value, "f.json", "run it anew")
    assert str(caught.value) == f"f.json is not as saelora writes it ({told}): was it edited? run it anew"


def test_a_point_that_diverged_has_null_figures_and_keeps_them() -> None:
    found = json.loads((DOCS / "rank" / "results.json").read_text())["points"][0]
    lost = {**found, "ce_base": float("nan"), "ce_adapted": float("nan"), "kl_adapted": float("inf")}
    lost["ci95"] = {**found["ci95"], "ce_adapted": [float("nan"), 1.0]}
    written = json.loads(json.dumps(SweepPoint.model_validate(lost).finite().to_json(), allow_nan=False))
    assert [written[name] for name in ("status", "ce_base", "ce_adapted", "kl_adapted")] == [
        "diverged",
        None,
        None,
        None,
    ]
    assert written["ci95"].keys() == found["ci95"].keys() - {"ce_adapted"}
    assert SweepPoint.model_validate(written).to_json() == written
