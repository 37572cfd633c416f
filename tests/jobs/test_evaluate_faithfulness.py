"""saelora evaluate --parts faithfulness, from the command line to the file."""

import json
from pathlib import Path
from typing import Any

import pytest

import workspace as ws
from saelora.cli import main

SMALL = {"ablation_draws": 1, "ablation_tokens": 2 * ws.CONTEXT, "eval_tokens": 6 * ws.CONTEXT}


def evaluate(adapter: Path, *words: str, **options: Any) -> int:
    flags = ["--adapter", str(adapter), "--parts", "faithfulness", *words]
    return main(["evaluate", *flags, *ws.as_flags({**SMALL, **options}), "--quiet"])


def test_the_part_is_written_and_told_in_words(
    adapted: Path, workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=1, seed=5)
    assert evaluate(adapted, out=tmp_path / "evals", other_sae=other) == 0
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "evals" / "faithfulness.json").read_text())
    result = written["result"]
    assert result["why"] in said
    assert result["verdict"] in ("reads_sae", "bypasses_sae", "unclear")
    assert result["other_sae"]["ref"] == str(other)
    assert result["ablation"]["n_predictions"] < result["n_predictions"] < 6 * ws.CONTEXT
    assert len(result["exempt"]["attention"]["layers"]) == ws.N_LAYERS
    assert written["options"]["ablation_draws"] == 1
    assert result["exempt"]["ids"] == written["about"]["token_policy"]["exempt_ids"] == [0, 1, 2]


def test_cross_entropies_are_those_of_the_part_loss(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--parts", "loss", "faithfulness", "--json"]
    assert evaluate(adapted, *out, out=adapted / "none.json") == 0
    (adapted / "none.json").unlink()
    found = json.loads(capsys.readouterr().out)
    part = found["faithfulness"]
    for arm in ("sae", "adapted"):
        assert part["ce"][arm]["value"] == pytest.approx(found[f"ce_{arm}"], abs=1e-5)
    assert part["sae_taken_out"]["ce_base"]["value"] == pytest.approx(found["ce_base"], abs=1e-5)
    assert part["sae_taken_out"]["ce_adapted_clean"]["value"] == pytest.approx(found["ce_adapted_clean"], abs=1e-5)
    assert part["zeroed"]["ce_sae"]["value"] == pytest.approx(found["ce_zero"], abs=1e-5)
    assert part["n_predictions"] == found["n_tokens_evaluated"]


def test_another_sae_that_sits_elsewhere_is_refused(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=2)
    assert evaluate(adapted, out=tmp_path / "evals", other_sae=other) == 2
    assert "sits at layers.2.resid_post, the adapter's at layers.1.resid_post" in ws.one_line(capsys)


def test_another_sae_of_another_width_is_refused(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ws.write_sae(tmp_path / "sae", layer=1, d_in=16)
    assert evaluate(adapted, out=tmp_path / "evals", other_sae=other) == 2
    assert "d_in 16" in ws.one_line(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ablation_draws": 0}, "ablation_draws is 0"),
        ({"ablation_tokens": 0}, "ablation_tokens is 0"),
        ({"other_sae": "no/such/place"}, "no/such"),
    ],
)
def test_bad_options_are_refused(
    adapted: Path, tmp_path: Path, options: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(adapted, out=tmp_path / "evals", **options) == 2
    assert said in ws.one_line(capsys)
