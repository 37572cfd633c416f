"""saelora evaluate --parts steering."""

import json
from pathlib import Path
from typing import Any

import pytest

import workspace as ws
from saelora.cli import main
from saelora.data.corpus import open_corpus
from saelora.data.pack import in_validation

SMALL = {
    "steering_n": 2,
    "steering_window": 24,
    "steering_tokens": 4000,
    "steering_tuning_texts": 3,
    "steering_test_texts": 5,
}


def steering(adapted: Path, out: Path, *flags: str, **options: Any) -> int:
    small, rates = dict(SMALL), ["--steering-rates", "0.02", "0.7"]
    if "--steering-latents" in flags:  # none are chosen then
        small.pop("steering_n")
        rates = []
    given = ws.as_flags({"adapter": adapted, "out": out, **small, **options})
    return main(["evaluate", "--parts", "steering", *rates, *given, *flags, "--quiet"])


def result(out: Path) -> Any:
    return json.loads((out / "steering.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def lines_of(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def measured(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("steering")
    assert steering(adapted, out) == 0
    return json.loads((out / "steering.json").read_text())


def test_everything_that_is_promised_is_there(measured: Any) -> None:
    found = measured["result"]
    assert measured["part"] == "steering"
    assert found["hookpoint"] == "layers.1.resid_post"
    assert found["level"] == 0.9
    assert found["methods"] == ["scale", "add"]
    assert len(found["latents"]) == 2
    for latent in found["latents"]:
        assert latent["how"] == "selected"
        assert 0 < latent["rate"] < 1
        assert latent["n"] == {"positives": 5, "negatives": 5}
        for passage in latent["top_passages"]:
            assert len(passage["tokens"]) == len(passage["activations"])
            assert passage["activations"][passage["focus"]] == max(passage["activations"]) > 0
        assert latent["top_passages"][0]["activations"][latent["top_passages"][0]["focus"]] == pytest.approx(
            latent["max_activation"], abs=1e-3
        )
        for method in found["methods"]:
            entry = latent["methods"][method]
            assert entry["alpha"] in [tried["alpha"] for tried in entry["tuning"]]
            for side in ("positives", "negatives"):
                for name in ("base", "adapted", "difference_raw", "difference_normalised"):
                    estimate = entry[side][name]
                    assert estimate["low"] <= estimate["value"] <= estimate["high"]
        (sample,) = latent["samples"]
        assert {"prompt", "base", "base_steered", "adapted", "adapted_steered"} <= sample.keys()
    pooled = found["pooled"]["scale"]["positives"]["difference_raw"]
    mean = sum(latent["methods"]["scale"]["positives"]["difference_raw"]["value"] for latent in found["latents"]) / 2
    assert pooled["value"] == pytest.approx(mean)
    assert pooled["low"] < pooled["high"]


def test_passages_come_from_held_out_documents_alone(measured: Any, workspace: ws.Workspace) -> None:
    documents = [document.text for document in open_corpus(str(workspace.data)).documents()]
    held_out = [text for text in documents if in_validation(text, ws.COMMON["validation_fraction"])]
    trained = [text for text in documents if text not in held_out]
    shown = [p for latent in measured["result"]["latents"] for p in latent["top_passages"]]
    assert shown
    for passage in shown:
        words = "".join(passage["tokens"][1:])
        assert any(words in " ".join(text.split()) for text in held_out)
        assert not any(words in " ".join(text.split()) for text in trained)


def test_latents_and_texts_of_ones_own_are_used(adapted: Path, tmp_path: Path) -> None:
    latents = [latent["latent"] for latent in _any_latents(adapted, tmp_path / "any")]
    rows = [{"text": f"ba de fi go lu {i} na", "set": "tuning" if i < 2 else "test"} for i in range(6)]
    own = {
        "steering_positives": lines_of(tmp_path / "p.jsonl", *rows),
        "steering_negatives": lines_of(tmp_path / "n.jsonl", *({**row, "text": row["text"][::-1]} for row in rows)),
    }
    flags = ["--steering-latents", str(latents[1]), str(latents[0]), "--steering-scale", "1", "--steering-samples", "0"]
    assert steering(adapted, tmp_path / "own", *flags, **own) == 0
    found = result(tmp_path / "own")["result"]
    assert [latent["latent"] for latent in found["latents"]] == latents[1::-1]
    for latent in found["latents"]:
        assert latent["how"] == "given"
        assert latent["n"] == {"positives": 4, "negatives": 4}
        assert latent["n_tuning"] == {"positives": 2, "negatives": 2}
        assert latent["methods"]["scale"]["alpha"] == 1.0
        assert latent["samples"] == []
    assert found["corpora"]["positives"].endswith("p.jsonl")


def _any_latents(adapted: Path, out: Path) -> Any:
    assert steering(adapted, out, "--steering-samples", "0") == 0
    return result(out)["result"]["latents"]


def test_steering_bos_too_is_another_measurement(adapted: Path, tmp_path: Path, measured: Any) -> None:
    assert steering(adapted, tmp_path, "--steering-bos", "--steering-samples", "0") == 0
    with_bos = result(tmp_path)["result"]
    assert with_bos["bos"]
    assert not measured["result"]["bos"]
    assert [x["latent"] for x in with_bos["latents"]] == [x["latent"] for x in measured["result"]["latents"]]
    assert with_bos["latents"][0]["methods"] != measured["result"]["latents"][0]["methods"]


def test_findings_are_printed_in_words(adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert steering(adapted, tmp_path, "--steering-samples", "0") == 0
    said = capsys.readouterr().out
    assert said.startswith("STEERING\n")
    assert "90 % interval" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steering-latents", "64"], "latents 0 to 63"),
        (["--steering-latents", "-1"], "steering_latents is -1, expected 0 or more"),
        (["--steering-latents", "three"], "steering_latents"),
        (["--steering-hookpoint", "layers.2.resid_post"], "layers.1.resid_post"),
        (["--steering-hookpoint", "nowhere"], "nowhere"),
        (["--steering-scale", "0"], "expected a number other than 0"),
        (["--steering-add", "nan"], "steering_add: got 'nan', expected a number"),
        (["--steering-window", "2"], "steering_window"),
        (["--steering-test-texts", "1"], "steering_test_texts"),
        (["--steering-n", "0"], "steering_n"),
        (["--steering-rates", "0.5"], "two shares"),
        (["--steering-rates", "0.5", "0.1"], "two shares"),
        (["--steering-positives", "no.jsonl"], "no.jsonl"),
    ],
)
def test_bad_options_are_one_line(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert steering(adapted, tmp_path, *flags) == 2
    assert says in ws.one_line(capsys)
    assert not (tmp_path / "steering.json").exists()


def test_a_text_on_both_sides_is_refused(adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (lines_of(tmp_path / name, {"text": "the same"}) for name in ("p.jsonl", "n.jsonl"))
    assert steering(adapted, tmp_path / "out", steering_positives=one, steering_negatives=two) == 2
    assert "positives and the negatives" in ws.one_line(capsys)


def test_too_few_texts_are_refused_with_their_number(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = lines_of(tmp_path / "p.jsonl", {"text": "ba de fi go", "set": "tuning"}, {"text": "lu na", "set": "test"})
    assert steering(adapted, tmp_path / "out", steering_positives=own) == 2
    said = ws.one_line(capsys)
    assert "has 1 positives among the test texts" in said
    assert "--steering-positives" in said
