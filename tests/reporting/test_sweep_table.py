"""A sweep's table and figures, from rows made up here."""

import csv
from pathlib import Path

import pytest

from page_collections import sweep_point as row
from saelora.reporting import sweep
from saelora.reporting.sweep import figures, markdown, text_table
from saelora.reporting.tables import write_csv


def test_seeds_become_one_point_with_their_range_and_a_single_run_has_its_interval() -> None:
    rows = [row(4, 0.30, seed=0), row(4, 0.40, seed=1), row(4, 0.38, seed=2), row(1, 0.2)]
    (x1, y1, low1, high1), (x4, y4, low4, high4) = sweep.points(rows, "rank", "gap_closed")
    assert (x1, y1, low1, high1) == (1, 0.2, pytest.approx(0.19), pytest.approx(0.22))
    assert (x4, low4, high4) == (4, 0.30, 0.40)
    assert y4 == pytest.approx(0.36)


def test_points_that_differ_in_more_than_the_seed_stay_apart() -> None:
    rows = [row(4, 0.3, lr=1e-3), row(4, 0.5, lr=2e-3)]
    assert [point[1] for point in sweep.points(rows, "rank", "gap_closed")] == [0.3, 0.5]


def test_figure_has_a_line_for_each_value_of_its_series(tmp_path: Path) -> None:
    rows = [row(x, y, layer=layer) for layer in (6, 12) for x, y in ((1, 0.1), (16, 0.2), (256, 0.3))]
    svg, png = figures(rows, "rank", "layer", "title <b>&", tmp_path)
    text = svg.read_text()
    assert "layer of the (lowest) SAE 6" in text.replace("&#x20;", " ") or text.count("<use") > 5
    assert "<b>" not in text
    assert png.read_bytes()[:4] == b"\x89PNG"


# factors of whole numbers and of fractions, steps of both, and the one with panels of its own
@pytest.mark.parametrize("x", ["rank", "lr", "layer", "fvu", "n_saes"])
def test_every_kind_of_axis_can_be_drawn(x: str, tmp_path: Path) -> None:
    drawn = figures([row(1, 0.1, key=x), row(2, 0.3, key=x)], x, None, "t", tmp_path)
    assert [path.name for path in drawn] == [f"{x}.svg", f"{x}.png"]


def test_a_point_without_a_place_on_the_axis_is_a_line_across(tmp_path: Path) -> None:
    rows = [row(13, 0.1, key="adapted_layer"), row(14, 0.2, key="adapted_layer")]
    across = [row(13, 0.3, key="adapted_layer").model_copy(update={"adapted_layer": None})]
    without = figures(rows, "adapted_layer", None, "t", tmp_path)[0].read_text()
    assert figures([*rows, *across], "adapted_layer", None, "t", tmp_path)[0].read_text().count(
        "<path"
    ) > without.count("<path")
    assert figures([rows[0], *across], "adapted_layer", None, "t", tmp_path) == []


def test_nothing_is_drawn_of_a_single_value_or_of_diverged_points(tmp_path: Path) -> None:
    assert figures([row(1, 0.1), row(1, 0.2, seed=1)], "rank", None, "t", tmp_path) == []
    assert figures([row(1, 0.1), row(2, 0.2, status="diverged")], "rank", None, "t", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_tables_show_what_varies_and_escape_what_would_break_them(tmp_path: Path) -> None:
    rows = [row(1, 0.1, sae=["{saes}/a|b"], model="m"), row(2, 0.25, sae=["x", "y"], model="m", status="diverged")]
    text = markdown(rows).splitlines()
    assert text[0].startswith("| sae | rank | ce_base")
    assert "a\\|b" in text[2]
    assert "10.0% (9.0% to 12.0%)" in text[2]
    assert "2 SAEs" in text[3]
    assert text[3].rstrip(" |").endswith("diverged")
    assert len(text_table(rows).splitlines()) == 3
    write_csv([each.to_json() for each in rows], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["sae"] for line in lines] == ["{saes}/a|b", "x y"]
    assert float(lines[0]["gap_closed_low"]) == pytest.approx(0.09)


def test_an_empty_sweep_says_so() -> None:
    assert "no point" in text_table([])
