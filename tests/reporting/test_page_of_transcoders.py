"""The page of runs around transcoders: named as what they are, with how they were put in."""

import argparse
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from page_runs import dump, write_run
from saelora.config import build, to_dict
from saelora.flags import add_options, as_words
from saelora.jobs.evaluate import Config
from saelora.reporting.page import page, read_runs

PARALLEL = {"mode": "parallel", "add_error": False}
ADDED = {"mode": "parallel", "add_error": True}
FIGURES = {"fvu": 0.5, "l0": 12.0, "dead_frac": 0.25}


def of_transcoders(
    folder: Path,
    *,
    architectures: tuple[str, ...] = ("skip_transcoder", "skip_transcoder"),
    method: str = "lora",
    replacement: dict[str, Any] | None = None,
    parts: tuple[str, ...] = ("drift", "tokens", "faithfulness"),
) -> Path:
    """A run around these, whose parts were measured as the run itself was."""
    write_run(folder, parts=parts)
    manifest, results = (json.loads((folder / name).read_text()) for name in ("saelora.json", "results.json"))
    one = manifest["saes"][0]
    saes = [
        {**one, "hookpoint": f"layers.{i}.mlp_out", "architecture": name, "fingerprint": f"f{i}"}
        for i, name in enumerate(architectures)
    ]
    about = {"saes": saes, **({} if replacement is None else {"replacement": replacement})}
    figures = {sae["hookpoint"]: FIGURES for sae in saes}
    trained = {} if method == "lora" else {where: {**FIGURES, "fvu": 0.125} for where in figures}
    tuned = [{"hookpoint": where, "folder": where, "fingerprint": "t"} for where in trained]
    config = {**manifest["config"], "transcoders": ["set"], "sae": []}
    dump(folder / "saelora.json", {**manifest, "saes": saes, "method": method, "tuned_saes": tuned, "config": config})
    dump(
        folder / "results.json", {**results, "method": method, "saes": figures, "saes_adapted": trained, "about": about}
    )
    for name in parts:
        file = json.loads((folder / "evals" / f"{name}.json").read_text())
        file["options"] = {**config, "parts": [name]}
        dump(folder / "evals" / f"{name}.json", {**file, "about": {**file["about"], **about}})
    return folder


def measured_in(folder: Path, replacement: dict[str, Any] | None, *parts: str) -> None:
    """Have parts say that they were measured with transcoders put in this way; "loss" is measured again."""
    for name in parts:
        path = folder / "evals" / f"{name}.json"
        if name == "loss":
            results = json.loads((folder / "results.json").read_text())
            file = {"part": "loss", "about": results["about"], "options": {}, "result": results}
        else:
            file = json.loads(path.read_text())
        file["about"] = {**file["about"], "replacement": replacement}
        dump(path, file)


def section(made: str, name: str) -> str:
    found = re.findall(rf'<section id="{name}".*?</section>', made, flags=re.DOTALL)
    assert len(found) == 1
    return html.unescape(found[0])


def test_a_page_says_how_its_transcoders_were_put_in(tmp_path: Path) -> None:
    made = page(read_runs([of_transcoders(tmp_path / "run", replacement=PARALLEL)]))
    assert "The 2 transcoders, each reading the original's stream (parallel), cost" in html.unescape(made)
    for name in ("results", "drift"):
        for told in ("spliced (transcoders in, parallel)", "spliced + adapted (parallel)"):
            assert told in section(made, name)
    assert "do not compare" not in made


def test_several_runs_stand_side_by_side_with_how_their_transcoders_were_put_in(tmp_path: Path) -> None:
    folders = [of_transcoders(tmp_path / "a"), of_transcoders(tmp_path / "b", replacement=PARALLEL, parts=())]
    found = section(page(read_runs(folders)), "results")
    assert '<td data-label="transcoders put in">cascading</td>' in found
    assert '<td data-label="transcoders put in">parallel</td>' in found
    assert "transcoders put in" not in section(page(read_runs([write_run(tmp_path / "c", parts=False)])), "results")


@pytest.mark.parametrize(("own", "other"), [(None, ADDED), (PARALLEL, None), (PARALLEL, ADDED)])
def test_what_was_measured_in_another_mode_than_the_run_is_said_not_to_compare(
    tmp_path: Path, own: dict[str, Any] | None, other: dict[str, Any] | None
) -> None:
    folder = of_transcoders(tmp_path / "run", replacement=own)
    measured_in(folder, other, "loss", "drift")
    name = {str(None): "cascading", str(PARALLEL): "parallel", str(ADDED): "parallel with errors added"}
    told = f"transcoders put in otherwise ({name[str(other)]}, not {name[str(own)]})"
    made = page(read_runs([folder]))
    results = section(made, "results")
    assert f"The losses that were measured again do not compare with the first ones: {told}." in results
    assert f"Its figures do not compare with the result above: {told}." in section(made, "drift")
    assert "do not compare" not in section(made, "tokens")
    for replacement in (own, other):
        mode = "" if replacement is None else f", {name[str(replacement)]}"
        assert f"spliced (transcoders in{mode})" in results


@pytest.mark.parametrize(
    ("method", "adapted"),
    [
        ("lora", "spliced + adapted"),
        ("lora+sae", "adapted, transcoders trained"),
        ("sae", "spliced, transcoders finetuned"),
    ],
)
def test_a_page_calls_the_variants_what_the_terminal_does(tmp_path: Path, method: str, adapted: str) -> None:
    made = page(read_runs([of_transcoders(tmp_path / "run", method=method)]))
    for name in ("results", "drift"):
        found = section(made, name)
        assert "spliced (transcoders in)" in found
        assert adapted in found
        assert "transcoders taken out" in found
        assert "SAE" not in found
    assert ("spliced + adapted" in made) == (method == "lora")
    assert ">cost of the transcoders<" in made


def test_what_parts_say_of_the_splice_holds_for_transcoders(tmp_path: Path) -> None:
    made = page(read_runs([of_transcoders(tmp_path / "run", parts=("faithfulness", "steering", "capabilities"))]))
    for name, told in (
        ("faithfulness", "With the splice taken out, the adapter"),
        ("faithfulness", "With zeros instead of the reconstruction"),
        ("faithfulness", "splice taken out (beside the original model)"),
        ("steering", "at every token that is replaced, the splice itself taken out"),
        ("capabilities", "splice taken out − original"),
    ):
        assert told in section(made, name)
    assert "SAE" not in section(made, "capabilities")


def test_trained_ones_figures_stand_beside_those_of_what_they_were(tmp_path: Path) -> None:
    found = section(page(read_runs([of_transcoders(tmp_path / "run", method="sae")])), "results")
    rows = re.findall(r'<td data-label="weights">(.*?)</td>.*?<td data-label="FVU"[^>]*>(.*?)</td>', found, re.DOTALL)
    assert rows == [("before training", "0.5"), ("as trained", "0.125")] * 2
    frozen = section(page(read_runs([of_transcoders(tmp_path / "frozen")])), "results")
    assert "before training" not in frozen


def test_saes_and_transcoders_are_told_apart(tmp_path: Path) -> None:
    made = page(read_runs([of_transcoders(tmp_path / "run", architectures=("skip_transcoder", "topk"))]))
    found = section(made, "results")
    assert re.findall(r'<td data-label="kind">(.*?)</td>', found) == ["transcoder", "SAE"]
    assert "SAEs and transcoders (FVU" in found
    assert "around its SAEs and transcoders</h1>" in made


def test_what_is_always_refused_of_transcoders_is_not_suggested(tmp_path: Path) -> None:
    for architectures in (("skip_transcoder",), ("topk", "skip_transcoder")):
        folder = of_transcoders(tmp_path / str(len(architectures)), architectures=architectures)
        made = page(read_runs([folder]))
        assert "This is about SAEs alone; here a transcoder is spliced in." in section(made, "saebench")
        assert "--parts saebench" not in made
        assert "--parts steering" in made


def commands(folder: Path) -> list[list[str]]:
    lines = section(page(read_runs([folder])), "use").splitlines()
    return [shlex.split(line.partition("</code>")[0]) for line in lines if line.startswith("saelora evaluate")]


def with_options(folder: Path, name: str, **options: Any) -> None:
    path = folder / "evals" / f"{name}.json"
    file = json.loads(path.read_text())
    dump(path, {**file, "options": {**file["options"], **options}})


def test_the_code_that_makes_it_again_has_the_options_that_each_part_was_measured_with(tmp_path: Path) -> None:
    folder = of_transcoders(tmp_path / "run", parts=("tokens", "drift", "faithfulness", "steering"))
    again = ["saelora", "evaluate", "--adapter", f"{folder}-again"]
    assert commands(folder) == [[*again, "--parts", "tokens", "drift", "faithfulness", "steering"]]
    fresh = {"replacement_mode": "cascading", "add_error": False, "ablation_draws": 3, "steering_n": 10}
    for name in ("tokens", "drift", "faithfulness", "steering"):
        with_options(folder, name, **fresh, device="auto", lr=0.5)
    assert commands(folder) == [[*again, "--parts", "tokens", "drift", "faithfulness", "steering"]]
    for name in ("drift", "faithfulness"):
        with_options(folder, name, replacement_mode="parallel", add_error=True, ablation_draws=1)
    with_options(folder, "steering", exempt=["bos", "first:3"], steering_latents=[3, 5], other_weights=True)
    assert commands(folder) == [
        [*again, "--parts", "tokens"],
        [
            *(*again, "--replacement-mode", "parallel", "--add-error"),
            *("--parts", "drift", "faithfulness", "--ablation-draws", "1"),
        ],
        [
            *(*again, "--exempt", "bos", "--exempt", "first:3", "--other-weights"),
            *("--parts", "steering", "--steering-latents", "3", "5"),
        ],
    ]


def test_options_as_words_are_what_the_command_line_reads() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Config)
    given = {
        "add_error": True,
        "capability_bos": False,
        "exempt": ["none", "bos"],
        "steering_scale": [0.5, 1.0],
        "data": "my texts",
        "model": "m",
    }
    read = build(Config, vars(parser.parse_args(as_words(Config, {**given, "revision": None, "sae": []}))))
    assert {name: to_dict(read)[name] for name in read.given} == given
