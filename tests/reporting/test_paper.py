"""Figures for papers: what is drawn, and what the CSV beside it says, is what the result files say."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from page_runs import estimate, write_run
from saelora.errors import InputError
from saelora.jobs.figure import figure
from saelora.jobs.report import report
from saelora.reporting.page import read_collection, read_runs
from saelora.reporting.paper import plots
from saelora.reporting.paper.draw import WIDTHS, drawn, save
from saelora.reporting.paper.plot import Plot

RANK = Path(__file__).parents[2] / "docs/results/rank/results.json"
RACE = Path(__file__).parents[2] / "docs/results/head_to_head/results.json"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def replacement() -> dict[str, Any]:
    def step(n: int, mode: str) -> dict[str, Any]:
        kl = 0.1 * n + (0.05 if mode == "parallel" else 0)
        each = {"sae": estimate(kl), "adapted": estimate(kl / 3)}
        return {
            "n_replaced": n,
            "layers": list(range(n)),
            "kl": each,
            "ce": each,
            "top1": each,
            "gap_closed": estimate(0.6),
        }

    curves = {mode: [step(n, mode) for n in (1, 3, 12)] for mode in ("cascading", "parallel")}
    return {"n_predictions": 9, "ce_base": estimate(3.4), "n_transcoders": 12, "curves": curves, "alone": []}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def with_replacement(run: Path) -> Path:
    part = json.loads((run / "evals" / "drift.json").read_text())
    (run / "evals" / "replacement.json").write_text(
        json.dumps({**part, "part": "replacement", "result": replacement()})
    )
    return run


def collection(folder: Path, results: Path, kind: str) -> Path:
    (folder / kind).mkdir(parents=True)
    (folder / "results.json").write_bytes(results.read_bytes())
    return folder


def artists(plot: Plot) -> list[set[tuple[float, float]]]:
    """The points that each panel's lines are drawn through."""
    with drawn(plot, "single") as made:
        return [
            {(float(x), float(y)) for line in axes.get_lines() for x, y in zip(*line.get_data(), strict=True)}
            for axes in made.axes
        ]


def test_a_learning_curve_is_the_runs_history_and_its_end(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    made = figure(dirs=[str(run)], kind="learning")
    assert made["files"] == [str(run / "figure-learning.pdf")]
    found = rows_of(run / "figure-learning.csv")
    history = [(float(r["x"]), float(r["y"])) for r in found if r["line"].startswith("while")]
    assert history == [(h["n_tokens"], h["gap_closed"]) for h in results["history"]]
    (last,) = (r for r in found if r["line"] == "all held-out rows")
    assert [float(last[c]) for c in ("y", "low", "high")] == [results["gap_closed"], *results["ci95"]["gap_closed"]]
    plot = plots.learning(read_runs([run]))
    assert {*history, (float(last["x"]), float(last["y"]))} <= artists(plot)[0]


def test_losses_are_the_results_with_their_intervals(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    figure(dirs=[str(run)], kind="losses")
    names = ("ce_base", "ce_sae", "ce_adapted", "ce_adapted_clean")
    found = [tuple(float(r[c]) for c in ("y", "low", "high")) for r in rows_of(run / "figure-losses.csv")]
    assert found == [(results[n], *results["ci95"][n]) for n in names]


def test_replacement_curves_are_the_parts_by_mode_before_and_after_adaptation(run: Path) -> None:
    with_replacement(run)
    made = figure(dirs=[str(run)])  # chosen, since the folder has it
    assert made["kind"] == "replacement"
    found = rows_of(run / "figure-replacement.csv")
    for mode, steps in replacement()["curves"].items():
        for key, name in (("sae", "spliced"), ("adapted", "adapted")):
            for panel in ("kl", "ce"):
                own = [r for r in found if (r["panel"], r["line"]) == (panel, f"{mode}, {name}")]
                expected = [[s["n_replaced"], *(s[panel][key][e] for e in ("value", "low", "high"))] for s in steps]
                assert [[float(r[c]) for c in ("x", "y", "low", "high")] for r in own] == expected
    plot = plots.replacement(read_runs([run]))
    drawn_points = artists(plot)
    for panel, points in zip(plot.panels, drawn_points, strict=True):
        assert {(x, y) for line in panel.lines for x, y, *_ in line.points} <= points
    assert len(plot.panels[0].lines) == 4


def test_a_sweep_is_drawn_over_its_axis_with_the_tables_figures(tmp_path: Path) -> None:
    folder = collection(tmp_path / "rank", RANK, "points")
    made = figure(dirs=[str(folder)], format=["svg"])
    points = json.loads(RANK.read_text())["points"]
    found = {float(r["x"]): float(r["y"]) for r in rows_of(folder / "figure-sweep.csv")}
    assert made["kind"] == "sweep"
    seeds: dict[int, list[float]] = {}
    for point in points:
        seeds.setdefault(point["rank"], []).append(point["gap_closed"])
    assert found == pytest.approx({rank: sum(gaps) / len(gaps) for rank, gaps in seeds.items()}, rel=1e-12)
    with pytest.raises(InputError, match=r"has 1 value of layer .* choose another --x"):
        figure(dirs=[str(folder)], x="layer", overwrite=True)


def test_a_comparison_is_drawn_as_the_race(tmp_path: Path) -> None:
    folder = collection(tmp_path / "race", RACE, "runs")
    assert figure(dirs=[str(folder)])["kind"] == "race"
    found = read_collection(folder)
    assert found is not None
    plot = plots.race(found)
    drawn_ys = {y for _, y in artists(plot)[0]}
    assert {float(r["y"]) for r in rows_of(folder / "figure-race.csv")} <= drawn_ys


@pytest.mark.parametrize("width", WIDTHS)
def test_files_have_a_columns_width_text_that_is_text_and_the_same_bytes_again(
    run: Path, tmp_path: Path, width: str
) -> None:
    plot = plots.replacement(read_runs([with_replacement(run)]))
    first = [path.read_bytes() for path in save(plot, tmp_path / "one", width, ["pdf", "svg", "png"])]
    again = [path.read_bytes() for path in save(plot, tmp_path / "two", width, ["pdf", "svg", "png"])]
    assert first == again
    pdf, svg, png = first
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)
    assert box is not None
    assert float(box[1]) == pytest.approx(72 * WIDTHS[width])
    assert b">cascading, adapted</text>" in svg
    assert png.startswith(b"\x89PNG")


def test_a_legend_stays_inside_the_figure(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "another-run-with-quite-a-long-name")
    plot = plots.learning(read_runs([run, other]))
    with drawn(plot, "single") as made:
        made.canvas.draw()
        box = made.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= made.bbox.x1


def test_runs_on_other_text_are_said_not_to_compare(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    results = json.loads((other / "results.json").read_text())
    results["about"] = {**(results.get("about") or {}), "heldout": {"fingerprint": "0", "n_rows": 3, "context": 16}}
    (other / "results.json").write_text(json.dumps(results))
    made = figure(dirs=[str(run), str(other)], kind="losses", out=str(tmp_path / "both"))
    assert made["notes"]


def test_bad_input_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    swept = collection(tmp_path / "rank", RANK, "points")
    figure(dirs=[str(run)], kind="losses")
    for options, said in (
        ({"dirs": []}, "no run given"),
        ({"dirs": [str(tmp_path / "no")]}, "is no folder"),
        ({"dirs": [str(run), str(swept)]}, "name it alone"),
        ({"dirs": [str(run)], "kind": "sweep"}, "is of a sweep's folder"),
        ({"dirs": [str(run)], "kind": "replacement"}, "has no replacement curve"),
        ({"dirs": [str(run)], "x": "rank"}, "--x is a column of a sweep"),
        ({"dirs": [str(swept)], "kind": "losses"}, "is of runs"),
        ({"dirs": [str(swept)], "x": "colour"}, "x is 'colour', expected one of rank"),
        ({"dirs": [str(run)], "kind": "losses"}, "exists: choose another --out, or --overwrite"),
        ({"dirs": [str(run)], "kind": "losses", "out": str(tmp_path / "a.pdf")}, "leave that out"),
        ({"dirs": [str(run)], "kind": "losses", "out": str(tmp_path / "no" / "a")}, "there is no folder"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            figure(**options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rank", "sparsity", "width", "layer", "n_saes", "single_layer", "head_to_head"])
def test_published_results_are_drawn_and_told_without_the_files_of_their_points(name: str, tmp_path: Path) -> None:
    folder = RANK.parents[1] / name
    made = figure(dirs=[str(folder)], format=("svg",), out=str(tmp_path / "made"), quiet=True)
    assert made["kind"] == ("race" if name == "head_to_head" else "sweep")
    found = json.loads((folder / "results.json").read_text())
    with (tmp_path / "made.csv").open() as file:
        assert len(list(csv.DictReader(file))) > 1
    told = report(dirs=[str(folder)], out=str(tmp_path / "made.html"), quiet=True)
    assert told["runs"] == [str(folder)]
    html = (tmp_path / "made.html").read_text()
    assert all(row["id"] in html for row in found.get("points", []))
