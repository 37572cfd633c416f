"""Pages of what commands really wrote: every figure and table that results can give is there, none of it empty.

The other tests of pages make up their results. There a key that an evaluation renames leaves a page with a figure less,
and no test fails; here one does.
"""

import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from page_runs import write_run
from saelora.cli import main
from saelora.reporting.page import page, read_runs
from workspace import ADAPT, CONTEXT, Workspace, as_flags, short_tasks

pytestmark = pytest.mark.xdist_group("compare")

# section -> the figures that the page of a run with every part has there. Capabilities are measured where lm-eval is
# installed. SAEBench needs an environment of its own and downloads, so that its section is seen with made-up results
# ((tests/reporting)) and its reader with files that SAEBench wrote (tests/evals/test_saebench.py).
FIGURES = {
    "results": {"gap", "learning-curve"},
    "use": set(),
    "tokens": {"token-histogram", "by-position", "by-frequency", "by-recon-error"},
    "text": set(),
    "drift": {"relative-l2", "cosine-distance"},
    "faithfulness": {"ablation-random", "ablation-top", "attention"},
    "steering": {"steering-scale", "steering-add"},
    "capabilities": {"capability-differences"},
    "saebench": set(),
    "latents": set(),
    "samples": set(),
    "provenance": set(),
}
MEASURED = [name for name in FIGURES if name not in ("capabilities", "saebench", "latents")]
# tables that hang on the run: another SAE was not given, nothing was measured again, environments are the same
CONDITIONAL = ("Another SAE", "Measured again", "Part ", "differ")
# columns that a run of one SAE on this text leaves empty
EMPTY: dict[str, tuple[str, ...]] = {}


def section(html: str, name: str) -> str:
    (found,) = re.findall(rf'<section id="{name}".*?</section>', html, flags=re.DOTALL)
    return found


def figures(html: str) -> set[str]:
    return set(re.findall(r'<figure id="figure-([^"]+)"', html))


def tables(html: str) -> dict[str, list[list[str]]]:
    """Cells of every table by the id of its caption, its header first."""
    found = {}
    for name, body in re.findall(r'<table data-name="([^"]+)".*?>(.*?)</table>', html, flags=re.DOTALL):
        lines = re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, flags=re.DOTALL) for line in lines]
        found[name] = [[unescape(re.sub(r"<.*?>", "", cell)).strip() for cell in line] for line in cells]
    return found


@pytest.fixture(scope="module")
def evaluated(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every part that needs nothing further installed."""
    out = tmp_path_factory.mktemp("evaluated") / "run"
    assert workspace.adapt(out, "--quiet", samples=1) == 0
    few = {"steering_n": 2, "steering_tokens": 60 * CONTEXT, "steering_window": 8, "ablation_draws": 1}
    few |= {"steering_tuning_texts": 2, "steering_test_texts": 2, "ablation_tokens": 4 * CONTEXT}
    assert main(["evaluate", "--adapter", str(out), "--parts", "all", "--quiet", *as_flags(few)]) == 0
    return out


@pytest.fixture(scope="module")
def html(evaluated: Path) -> str:
    return page(read_runs([evaluated]))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(read_runs([write_run(tmp_path_factory.mktemp("made-up") / "run")]))


def test_the_page_has_every_section_and_each_its_figures(html: str) -> None:
    assert re.findall(r'<section id="([^"]+)"', html) == list(FIGURES)
    assert {name: figures(section(html, name)) for name in MEASURED} == {name: FIGURES[name] for name in MEASURED}


def test_the_reader_has_every_number_of_every_counted_token(html: str) -> None:
    """Losses of three variants, divergences of two, the SAE's error, and what was likeliest to come next."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    (run,) = json.loads(data)["runs"]
    assert {passage["group"] for passage in run["passages"]} == {"most_helped", "most_hurt", "text"}
    for passage in run["passages"]:
        for at in (i for i, counted in enumerate(passage["counted"]) if counted):
            numbers = [row[at] for row in (*passage["ce"], *passage["kl"], passage["error"])]
            assert len(numbers) == 6
            assert None not in numbers
            assert len(passage["top"][at]) == 3


def test_the_code_on_the_page_runs_as_it_stands(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("my run")
    assert workspace.adapt(run, "--quiet") == 0
    found = section(page(read_runs([run])), "use")
    python, play, again = (unescape(code).strip() for code in re.findall(r"<code>(.*?)</code>", found, flags=re.DOTALL))
    capsys.readouterr()
    exec(python, {})
    assert capsys.readouterr().out.strip()
    assert shlex.split(play) == ["saelora", "open", "my run"]
    program, *words = shlex.split(again)
    assert program == "saelora"
    assert main([*words, "--quiet"]) == 0
    before, after = (json.loads((Path(name) / "results.json").read_text()) for name in ("my run", "my run-again"))
    assert after["ce_adapted"] == before["ce_adapted"]


def test_the_samples_are_continued_by_every_variant(html: str) -> None:
    assert re.findall(r"<dt>(.*?)</dt>", section(html, "samples")) == ["original", "spliced", "adapted"]


def test_capabilities_of_a_real_run_have_their_figure_and_table(evaluated: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra capabilities is not installed")
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    asked = ["--tasks", "sotu_last_word", "--task-folder", str(short_tasks(tmp_path / "tasks")), "--limit", "3"]
    assert main(["evaluate", "--adapter", str(run), "--parts", "capabilities", *asked, "--quiet"]) == 0
    found = section(page(read_runs([run])), "capabilities")
    assert figures(found) == FIGURES["capabilities"]
    assert 'class="missing"' not in found
    measured = json.loads((run / "evals" / "capabilities.json").read_text())["result"]["tasks"]
    (rows,) = (rows[1:] for name, rows in tables(found).items() if name == "capabilities-1")
    assert len(rows) == len(measured)


@pytest.mark.parametrize("name", MEASURED)
def test_a_section_of_real_results_has_every_figure_and_table_of_made_up_ones(
    html: str, made_up: str, name: str
) -> None:
    real, other = section(html, name), section(made_up, name)
    assert figures(real) >= figures(other)
    captions = [
        set(re.findall(r'<p class="caption" [^>]*>\s*(.*?)\s*</p>', each, flags=re.DOTALL)) for each in (real, other)
    ]
    missing = {c for c in captions[1] - captions[0] if not c.startswith(CONDITIONAL) and "differ)" not in c}
    assert missing == set()
    assert 'class="missing"' not in real


def test_no_table_of_real_results_has_a_column_without_a_value(html: str) -> None:
    for name, (header, *rows) in tables(html).items():
        assert rows, name
        if name.startswith("provenance"):
            continue
        for i, column in enumerate(header):
            values = {row[i] for row in rows}
            assert values - {"–", ""} or column in EMPTY.get(name, ()), f"{name}: {column}"


def test_every_number_of_the_losses_is_on_the_page(evaluated: Path, html: str) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    shown = set(re.findall(r'data-value="([^"]+)"', section(html, "results")))
    wanted = [k for k in results if k.startswith(("ce_", "kl_", "top1_", "loss_recovered_")) or k == "gap_closed"]
    wanted = [k for k in wanted if k not in ("ce_zero", "ce_gap", "ce_gain", "kl_zero", "top1_zero")]
    assert len(wanted) >= 10
    for key in wanted:
        assert str(results[key]) in shown, key


def test_whole_rows_of_text_and_both_extremes_can_be_read(html: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    (run,) = json.loads(data)["runs"]
    assert {passage["group"] for passage in run["passages"]} == {"most_helped", "most_hurt", "text"}


@pytest.fixture(scope="module")
def swept(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swept")
    base = {k: v for k, v in ADAPT.items() if k not in ("history_points", "history_tokens", "rank")}
    base |= {"model": str(workspace.model), "data": str(workspace.data), "sae": [str(workspace.sae)]}
    base |= {"tokens": 8 * CONTEXT}
    points = [{}, {"eval_tokens": 4 * CONTEXT}]
    recipe = {"title": "ranks <b>", "base": base, "grid": {"rank": [1, 2]}, "points": points}
    (root / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["sweep", str(root / "r.yaml"), "--out", str(root / "out"), "--save-adapters", "--quiet"]) == 0
    return root / "out"


def report(*folders: Path) -> int:
    return main(["report", *map(str, folders), "--quiet"])


def checked(folder: Path) -> str:
    """The folder's page, which asks nothing of the network, and whose links lead to what is there."""
    assert report(folder) == 0
    html = (folder / "report.html").read_text()
    assert "<b>" not in html
    for address in re.findall(r'<a href="([^"#]+)"', html):
        assert (folder / address).exists(), address
    assert not re.search(r"""src=["']|@import|https?://(?!www\.w3\.org)""", html)
    for name, (_, *rows) in tables(html).items():
        assert rows, name
    return html


def test_the_page_of_a_comparison_holds_its_tables_figures_words_and_runs(compared: tuple[Path, Path]) -> None:
    out, _ = compared
    html = checked(out)
    assert figures(html) == {"race", "speedups", "equal", "left-behind"}
    runs = json.loads((out / "results.json").read_text())["runs"]
    found = tables(html)
    assert found["results-first-1"][0][:3] == ["way", "from", "tokens"]
    assert len(found["results-first-1"]) - 1 == len(runs)
    for run in runs:
        assert f'href="runs/{run["id"]}.json"' in html
    assert "Share of the SAE&#39;s gap that 256 tokens of training close" in html


def test_the_page_of_a_sweep_holds_its_points_figures_and_adapters(swept: Path) -> None:
    html = checked(swept)
    assert figures(html) == {"gap_closed", "ce_gain"}
    points = json.loads((swept / "results.json").read_text())["points"]
    header, *rows = tables(html)["results-first-1"]
    assert [row[0] for row in rows] == [point["id"] for point in points]
    assert [row[header.index("text")] for row in rows] == ["a", "a", "b", "b"]
    assert f"{points[0]['ce_adapted']:.4f}" in rows[0][header.index("ce_adapted")]
    assert "points marked b and points marked a" in section(html, "results")
    assert "text a" in html
    for point in points:
        assert f'href="adapters/{point["id"]}/README.md"' in html


def test_a_sweep_or_comparison_beside_others_is_one_clear_line(
    swept: Path, compared: tuple[Path, Path], evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folders, told in (((evaluated, swept), "is a sweep"), ((compared[0], swept), "is a comparison")):
        assert report(*folders) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert report(evaluated, *(swept / "adapters").iterdir(), compared[0]) == 2


def test_runs_on_other_held_out_rows_stand_side_by_side_with_a_warning(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    points = json.loads((swept / "results.json").read_text())["points"]
    runs = [swept / "adapters" / point["id"] for point in points]
    assert report(runs[0], runs[1]) == 0
    assert "Careful" not in Path("saelora-report.html").read_text()
    assert report(runs[0], runs[2]) == 0
    html = Path("saelora-report.html").read_text()
    assert "runs marked b and runs marked a" in section(html, "results")
    header, *rows = tables(html)["results-first-1"]
    assert [row[header.index("text")] for row in rows] == ["a", "b"]


def test_runs_of_older_versions_are_said_to_be_unknown(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = Path(shutil.copytree(evaluated, tmp_path / "old"))
    results = json.loads((old / "results.json").read_text())
    del results["about"]
    (old / "results.json").write_text(json.dumps(results))
    assert report(evaluated, old) == 0
    html = Path("saelora-report.html").read_text()
    assert "Whether they compare is unknown" in section(html, "results")
    assert "unknown: an older version did not record it" in section(html, "provenance")


def test_a_damaged_table_is_one_line(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, told in (
        ("{", "cannot be read"),
        ("{}", "holds no points"),
        ('{"points": []}', "no finished points yet"),
        ('{"points": [{"status": "done"}]}', "points[0].id is missing"),
    ):
        copy = Path(shutil.copytree(swept, tmp_path / str(len(told))))
        (copy / "results.json").write_text(content)
        assert report(copy) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


def test_a_run_that_did_harm_says_so_everywhere(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options: dict[str, Any] = {"lr": 0.9, "clip": 0, "tokens": 40 * CONTEXT}
    assert workspace.adapt(out, "--quiet", **options) in (0, 3)
    told = "ended worse than the spliced model that it began from"
    results = json.loads((out / "results.json").read_text())
    assert results["ce_adapted"] > results["ce_sae"] + 0.1
    assert told in capsys.readouterr().out
    assert told in (out / "README.md").read_text()
    assert told in page(read_runs([out]))
