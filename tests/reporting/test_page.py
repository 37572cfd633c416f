"""The page as HTML: what it tells, of one run and of several, and that what is missing is said."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from page_runs import HOSTILE, dump, estimate, write_run
from saelora.errors import InputError
from saelora.evals.loss_result import RunResult
from saelora.evals.tokens.text import payload
from saelora.reporting.counted import Counted, CountedLatent, CountedPassage, CountedSAE
from saelora.reporting.page import MARKER, page, read_runs, script_json, visible
from saelora.reporting.page.read import differences
from saelora.reporting.page.view import Table, cell, written
from saelora.reporting.text import lead


def data_of(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def section(html: str, name: str) -> str:
    found = re.findall(rf'<section id="{name}".*?</section>', html, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page(read_runs([run]))


def test_page_begins_with_the_headline_and_is_marked_as_ours(run: Path, html: str) -> None:
    assert html.startswith("<!DOCTYPE html>")
    assert MARKER in html[:2048]
    told = lead(RunResult.model_validate_json((run / "results.json").read_bytes()))
    assert f'<p class="headline">{told}</p>' in html
    assert html.index("headline") < html.index('<section id="results"')


def test_page_asks_nothing_of_the_network(html: str) -> None:
    assert not re.search(r"""(src|href)=["'](?!#|data:,)""", html)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_page_is_the_same_when_it_is_made_again(run: Path, html: str) -> None:
    assert page(read_runs([run])) == html


def test_every_part_has_its_section_and_its_words(html: str) -> None:
    for name in ("results", "tokens", "text", "drift", "faithfulness", "steering", "capabilities", "saebench"):
        assert section(html, name)
    assert "The adapted model reads its SAE" in section(html, "faithfulness")
    assert "what we can do together." in section(html, "samples")
    for told in (
        "sha256:31f7ab02",
        "sha256:90c2dd17",
        "exempt_ids",
        "2.13.0",
        "18b9eb1c0ffee",
        "cpu_count",
        "placement",
    ):
        assert told in section(html, "provenance")


def test_a_part_that_was_not_measured_names_the_command_that_does(tmp_path: Path) -> None:
    html = page(read_runs([write_run(tmp_path / "my run", parts=False)]))
    for part in ("tokens", "drift", "faithfulness", "steering", "capabilities", "saebench"):
        command = f"saelora evaluate --adapter &#39;{tmp_path}/my run&#39; --parts {part}"
        assert command in section(html, part)
        assert "<figure" not in section(html, part)
    assert 'id="reader"' not in html


def test_parts_with_optional_keys_missing_still_make_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", parts=("drift", "faithfulness"))
    for name, keys in {"faithfulness": ("other_sae",), "drift": ("latents",)}.items():
        file = json.loads((run / "evals" / f"{name}.json").read_text())
        for key in keys:
            file["result"][key] = None if name == "faithfulness" else {}
        del file["environment"], file["seconds"]
        dump(run / "evals" / f"{name}.json", file)
    assert "Another SAE at the same place" not in page(read_runs([run]))


def edited(run: Path, part: str, *keys: str, value: Any) -> None:
    path = run / "evals" / f"{part}.json"
    file = json.loads(path.read_text())
    box = file["result"]
    for key in keys[:-1]:
        box = box[key]
    box[keys[-1]] = value
    dump(path, file)


@pytest.mark.parametrize(
    ("part", "keys", "value", "told"),
    [
        ("drift", ("n_positions",), "x", "n_positions is text ('x'), expected a whole number"),
        ("faithfulness", ("verdict",), "maybe", "verdict is text ('maybe'), expected one of reads_sae"),
        (
            "faithfulness",
            ("exempt", "attention", "layers"),
            {},
            "exempt.attention.layers is an object, expected a list",
        ),
        ("tokens", ("cost", "mean"), 0.1, "cost.mean is a number (0.1), expected an object"),
    ],
)
def test_an_edited_result_is_refused_in_one_line_that_names_file_and_entry(
    tmp_path: Path, part: str, keys: tuple[str, ...], value: Any, told: str
) -> None:
    run = write_run(tmp_path / "run", parts=(part,))
    edited(run, part, *keys, value=value)
    with pytest.raises(InputError) as caught:
        read_runs([run])
    assert f"{run}/evals/{part}.json is not as saelora writes it ({told}" in str(caught.value)
    assert f"measure it again with --parts {part} --overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_that_older_versions_wrote_as_results_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", parts=("drift", "faithfulness"))
    edited(run, "faithfulness", "verdict", value="goes round its SAE")
    edited(run, "drift", "trained", value="the adapter with its trained SAE")
    html = page(read_runs([run]))
    assert "The adapted model goes round its SAE" in section(html, "faithfulness")
    assert "the training brings" in section(html, "drift")


@pytest.mark.parametrize("changed", ["model", "saes", "token_policy"])
def test_a_part_measured_on_something_else_is_flagged(tmp_path: Path, changed: str) -> None:
    run = write_run(tmp_path / "run", parts=("drift",))
    assert differences(read_runs([run])[0], "drift") == []
    file = json.loads((run / "evals" / "drift.json").read_text())
    if changed == "token_policy":
        file["about"]["token_policy"]["first"] = True
    else:
        (file["about"]["saes"][0] if changed == "saes" else file["about"]["model"])["fingerprint"] = "sha256:other"
    dump(run / "evals" / "drift.json", file)
    html = page(read_runs([run]))
    assert "Careful" in section(html, "drift")
    assert html.count("Careful") == 1


def test_several_runs_are_compared_in_rows_and_told_apart_by_name(tmp_path: Path) -> None:
    parts = ("tokens",)  # the one that has its text in the page
    runs = [write_run(tmp_path / "a" / "run", parts=parts), write_run(tmp_path / "b" / "run", seed=3, parts=False)]
    html = page(read_runs(runs))
    results = section(html, "results")
    assert results.index("The runs side by side") < results.index("<figure")
    assert "a/run" in results
    assert "b/run" in results
    assert [each["label"] for each in data_of(html)["runs"]] == ["a/run"]


def counted(run: Path, token: str) -> Counted:
    passage = CountedPassage(tokens=["a", token], values=[0.5, 2.0])
    rare = {"density": 0.004, "density_spliced": 0.003, "most": 2.0, "n": 12, "passages": [passage]}
    latents = [CountedLatent(latent=i, effect=effect, **rare) for i, effect in ((7, -0.25), (9, 0.125))]
    orders = {"helped": [7], "hurt": [9], "changed": [], "strongest": [9, 7]}
    sae = CountedSAE(n_tokens=4000, n_latents=4608, n_silent=500, least=10, orders=orders, latents=latents)
    return Counted(about=read_runs([run])[0].about, variant="adapted", saes={"layers.12.resid_post": sae})


def test_latents_that_were_counted_are_listed_with_passages_and_else_it_is_said_how(run: Path, html: str) -> None:
    assert f"saelora open {run}" in section(html, "latents")
    found = section(page([replace(read_runs([run])[0], counted=counted(run, HOSTILE[1]))]), "latents")
    assert "helps most at latent 7 (−0.2500 nats over 12 predictions" in found
    assert [row in found for row in ("Where the adaptation helps most", "hurts most", "The strongest")] == [True] * 3
    assert "density the adaptation changes" not in found
    assert 'class="s5 focus">&lt;img' in found
    assert "<img" not in found


def test_hostile_names_and_texts_make_no_markup(tmp_path: Path) -> None:
    html = page(read_runs([write_run(tmp_path / "<b>run", hostile=True)]))
    assert html.count("<script") == 2
    for raw in ("<img", "<b>", 'onerror="', "<script>document", "\u202e", "\u200b", "\x00", "\u2028"):
        assert raw not in html
    tokens = data_of(html)["runs"][0]["vocab"].values()
    assert HOSTILE[0] in tokens
    assert ["x" * 200, 10_000] in tokens


def test_json_in_the_page_cannot_end_its_script() -> None:
    value = {"a": "</script><!--&\u2028\u2029\ud800é"}
    text = script_json(value)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_what_is_invisible_is_named_by_its_code_point() -> None:
    assert visible("a\u202eb\x07") == [(False, "a"), (True, "U+202E"), (False, "b"), (True, "U+0007")]
    assert visible("two\nlines") == [(False, "two\nlines")]
    assert visible("x" * 30_000) == [(False, "x" * 20_000), (True, "… 30,000 characters")]


def test_a_page_of_20_rows_of_512_tokens_is_under_5_megabytes(tmp_path: Path) -> None:
    sizes = {}
    for context in (16, 64):  # a token takes the same room in all rows
        html = page(read_runs([write_run(tmp_path / str(context), rows=20, context=context, parts=("tokens",))]))
        assert sum(len(p["ids"]) for p in data_of(html)["runs"][0]["passages"] if p["group"] == "text") == 20 * context
        sizes[context] = len(html.encode())
    a_token = (sizes[64] - sizes[16]) / (20 * (64 - 16))
    assert sizes[16] + a_token * 20 * (512 - 16) < 4_000_000  # what the other parts add is below a tenth of this


def test_several_runs_share_the_room_for_text(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / str(i), rows=12, context=8, seed=i, parts=("tokens",)) for i in range(4)])
    counts = [sum(p["group"] == "text" for p in each["passages"]) for each in payload(runs)["runs"]]
    assert counts == [5, 5, 5, 5]


def test_cells_show_rounded_numbers_and_keep_all_digits() -> None:
    shown = cell(estimate(0.12345, 0.01), "share")
    assert (shown.text, shown.interval) == ("12.3%", "11.3% to 13.3%")
    assert (shown.value, shown.low, shown.high) == (0.12345, 0.11345, 0.13345)
    undefined = cell({"value": None, "low": None, "high": None}, "nats")
    assert (undefined.text, undefined.interval, undefined.value) == ("–", "", None)
    assert cell(float("nan"), "nats").text == "–"
    assert written(-0.5, "number") == "−0.5"
    assert written(25_600, "count") == "25,600"
    assert Table("t", [("a", "text"), ("b", "nats")], [["x", estimate(1)], ["y", 2.0]]).has_interval(1)


def test_folders_that_are_no_finished_run_are_refused_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    other = write_run(tmp_path / "other")
    dump(other / "results.json", {"n": 1})
    damaged = write_run(tmp_path / "damaged")
    (damaged / "evals" / "drift.json").write_text("{")
    empty = write_run(tmp_path / "empty")
    dump(empty / "evals" / "drift.json", {"part": "drift"})
    (tmp_path / "nothing").mkdir()
    for folders, told in (
        ([], "no run given"),
        ([run, run], "named twice"),
        ([tmp_path / "absent"], "is no folder"),
        ([tmp_path / "nothing"], "saelora.json is missing"),
        ([other], "results.json has no ce_base"),
        ([damaged], "drift.json cannot be read"),
        ([empty], "has no result"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            read_runs(folders)
        assert "\n" not in str(caught.value)
