"""saelora report: where the page goes, and what it never overwrites."""

import json
from pathlib import Path

import pytest

from page_runs import write_run
from saelora.cli import main
from saelora.errors import InputError
from saelora.jobs.report import report


def test_one_run_s_page_lies_in_its_folder_and_several_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        write_run(tmp_path / name, parts=False, seed=i)
    assert main(["report", "a", "--quiet"]) == 0
    assert "a/report.html (0.1 MB): open it in a browser" in capsys.readouterr().out
    assert (tmp_path / "a" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["report", "a", "b", "--quiet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == ["a", "b"]
    assert told["bytes"] == (tmp_path / "saelora-report.html").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "saelora-report.html"]


def test_a_report_is_replaced_and_any_other_file_left_alone(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", parts=False))
    out = tmp_path / "page.html"
    report(dirs=[run], out=str(out), quiet=True)
    first = out.read_bytes()
    out.write_bytes(first + b"<!-- changed -->")
    report(dirs=[run], out=str(out), quiet=True)
    assert out.read_bytes() == first
    out.write_text("<html>mine</html>")
    with pytest.raises(InputError, match="is no saelora report, so it is left alone: choose another --out"):
        report(dirs=[run], out=str(out), quiet=True)
    assert out.read_text() == "<html>mine</html>"


@pytest.mark.parametrize(
    ("out", "told"), [("", "is a folder: name a file"), ("no/such/page.html", "there is no folder")]
)
def test_a_place_that_takes_no_file_is_refused(tmp_path: Path, out: str, told: str) -> None:
    run = str(write_run(tmp_path / "run", parts=False))
    with pytest.raises(InputError, match=told):
        report(dirs=[run], out=str(tmp_path / out), quiet=True)


def test_no_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert capsys.readouterr().err == (
        "saelora: no run given: name the folder of a saelora adapt run, as in saelora report DIR\n"
    )
