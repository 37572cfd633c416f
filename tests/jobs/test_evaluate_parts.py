"""saelora evaluate --parts: which parts are measured, where their results go, and what is refused beforehand."""

import json
from pathlib import Path

import pytest

import workspace as ws
from saelora.cli import main
from saelora.core.group import Group
from saelora.errors import InputError
from saelora.jobs.evaluate import ALL, Config, parts_of

FEW = {"eval_tokens": 3 * ws.CONTEXT}


def evaluate(*words: str, **options: object) -> int:
    return main(["evaluate", *words, *ws.as_flags({**FEW, **options}), "--quiet"])


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


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    said = capsys.readouterr().err.splitlines()
    assert all(each.startswith("saelora: ") for each in said)
    return said


def test_a_part_that_is_there_is_skipped_and_the_others_are_measured(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drift") == 0
    before = (run / "evals" / "drift.json").read_bytes()
    capsys.readouterr()
    words = ["--adapter", str(run), "--parts", "loss", "drift", "--json", *ws.as_flags(FEW)]
    assert main(["evaluate", *words]) == 0
    out, err = capsys.readouterr()
    assert "drift is measured already" in err
    assert (run / "evals" / "drift.json").read_bytes() == before
    assert json.loads(out)["drift"] == json.loads(before)["result"]
    assert json.loads(out)["ce_base"] == json.loads((run / "evals" / "loss.json").read_text())["result"]["ce_base"]
    assert evaluate("--adapter", str(run), "--parts", "loss", "drift") == 0  # nothing left to do is no error
    assert evaluate("--adapter", str(run), "--parts", "drift", "--overwrite") == 0
    again = json.loads((run / "evals" / "drift.json").read_text())
    assert again["result"] == json.loads(before)["result"]
    assert (run / "evals" / "drift.json").read_bytes() != before


def test_a_file_that_is_no_part_is_kept_and_the_others_are_measured(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evals").mkdir()
    (run / "evals" / "drift.json").write_text("mine")
    assert evaluate("--adapter", str(run), "--parts", "loss", "drift") == 2
    (said,) = lines(capsys)
    assert "part drift was not measured" in said
    assert "drift.json cannot be read" in said
    assert "--overwrite" in said
    assert sorted(path.name for path in (run / "evals").iterdir()) == ["drift.json", "loss.json"]
    assert (run / "evals" / "drift.json").read_text() == "mine"
    assert evaluate("--adapter", str(run), "--parts", "drift", "--overwrite") == 0
    assert json.loads((run / "evals" / "drift.json").read_text())["part"] == "drift"


def test_a_part_measured_on_other_rows_is_no_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drift") == 0
    before = (run / "evals" / "drift.json").read_bytes()
    assert evaluate("--adapter", str(run), "--parts", "drift", eval_tokens=5 * ws.CONTEXT) == 2
    (said,) = lines(capsys)
    assert "drift.json was measured on other held-out rows (3 rows of 32 tokens, not 5 rows of 32 tokens)" in said
    assert (run / "evals" / "drift.json").read_bytes() == before


def test_a_part_measured_with_other_options_of_its_own_is_no_answer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--adapter", str(run), "--parts", "tokens", passages=2) == 0
    assert evaluate("--adapter", str(run), "--parts", "tokens", passages=3) == 2
    assert "was measured with passages 2, now it is 3" in lines(capsys)[0]


def test_a_part_measured_on_another_sae_is_no_answer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=1, seed=5)
    assert evaluate("--adapter", str(run), "--parts", "drift", "--other-weights", sae=other) == 0
    capsys.readouterr()
    assert evaluate("--adapter", str(run), "--parts", "drift") == 2
    assert "was measured on another SAE" in lines(capsys)[0]


def test_a_part_from_before_rows_had_a_fingerprint_is_judged_by_its_options(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drift") == 0
    path = run / "evals" / "drift.json"
    file = json.loads(path.read_text())
    for key in ("heldout", "autocast", "adapter"):
        del file["about"][key]
    path.write_text(json.dumps(file))
    assert evaluate("--adapter", str(run), "--parts", "drift") == 0
    assert evaluate("--adapter", str(run), "--parts", "drift", eval_tokens=5 * ws.CONTEXT) == 2
    assert f"was measured with eval_tokens {FEW['eval_tokens']}, now it is {5 * ws.CONTEXT}" in lines(capsys)[0]


def test_a_part_that_fails_leaves_the_others_and_each_failure_has_its_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One part fails before a model is loaded, one on the model; what was measured is written, shown and returned."""
    words = ["--parts", "loss", "tokens", "faithfulness", "steering", "drift", "--json"]
    bad = {"other_sae": ws.write_sae(tmp_path / "narrow", layer=1, d_in=16), "steering_positives": "/no/such.jsonl"}
    assert evaluate("--adapter", str(run), *words, **bad) == 2
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert [each.split(" was not measured: ")[0] for each in told] == [
        "saelora: part faithfulness",
        "saelora: part steering",
    ]
    assert {"ce_base", "tokens", "drift", "about"} <= json.loads(out).keys()
    assert sorted(path.name for path in (run / "evals").iterdir()) == ["drift.json", "loss.json", "tokens.json"]


def test_a_part_that_fails_leaves_the_others_in_one_json_file_too(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    flags = ["--parts", "drift", "steering"]
    assert evaluate("--adapter", str(run), *flags, out=out, steering_positives="/no/such.jsonl") == 2
    assert "drift" in json.loads(out.read_text())


def test_a_part_beyond_the_loss_needs_an_adapter(workspace: ws.Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"sae": workspace.sae, "data": workspace.data, **ws.COMMON}
    assert evaluate(str(workspace.model), "--parts", "tokens", **flags) == 2
    assert "--adapter" in ws.one_line(capsys)


def test_an_unknown_part_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--adapter", str(run), "--parts", "drfit") == 2
    assert "'drfit'" in ws.one_line(capsys)


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
