"""Charts as SVG for a page: well formed, the page's colours, unique ids, the same bytes for the same numbers."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from saelora.reporting.page import charts
from saelora.reporting.page.charts import Bar, GapBar, Series, style

SVG = "{http://www.w3.org/2000/svg}"
BAR = GapBar("run", 0.11, 0.06, [0.055, 0.065])


def line(name: str = "line", label: str = "a run", **options: Any) -> str:
    series = [Series(label, [1, 2, 4], [0.1, None, 0.3], [0.0, None, 0.2], [0.2, None, None], style(0))]
    return charts.lines([*series, Series("other", [1, 2], [0.2, 0.3], style=style(1))], name, "x", "y", **options)


def every() -> dict[str, str]:
    dot = [Series("a", [0, 1], [-0.1, 0.2], [-0.2, 0.1], [0.0, 0.3], style(0))]
    edges = [10.0 ** (i - 3) for i in range(5)]
    return {
        "gap": charts.gap_bars([BAR, replace(BAR, left=0.2), replace(BAR, left=-0.02, interval=None)], "gap"),
        "bars": charts.bars(
            [Bar("a", 0.1, [0.05, 0.15]), Bar("b", -0.2, None, "worse"), Bar("c", 0.3, None, "left")], "bars", "x"
        ),
        "line": line(),
        "log": line("log", log_x=True, zero=True, levels=[("level", 0.2)]),
        "dots": charts.dots(["first", "second"], dot, "dots", "x"),
        "histogram": charts.histogram(edges, [("a", [1, 2, 3, 4], [4, 3, 2, 1])], "histogram"),
        "histograms": charts.histogram(
            edges, [("a", [1, 2, 3, 4], [0, 0, 0, 0]), ("b", [1] * 4, [1] * 4)], "histograms"
        ),
    }


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return every()


def test_every_chart_is_well_formed_in_the_pages_colours_only(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        root = ET.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        assert "width" not in root.attrib
        assert "viewBox" in root.attrib
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", svg)) <= {"#ffffff", "#000000"}
        assert "var(--ink)" in svg
        assert "<metadata" not in svg


def test_ids_are_unique_over_a_page_and_every_reference_is_kept(drawn: dict[str, str]) -> None:
    both = "".join(drawn.values())
    ids = re.findall(r'\bid="([^"]+)"', both)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'href="#([^"]+)"', both) + re.findall(r"url\(#([^)]+)\)", both)
    assert referred
    assert set(referred) <= set(ids)


def test_the_same_numbers_give_the_same_bytes(drawn: dict[str, str]) -> None:
    assert every() == drawn


def test_a_name_is_text_whatever_it_holds() -> None:
    name = '</svg><script>&"$\\alpha$'
    assert name in texts(line(label=name))
    assert texts(line(label="_hidden")).count(" _hidden") == 1
    assert any(told.endswith("…") and len(told) <= 30 for told in texts(line(label="long " * 30)))
    assert "\n" not in "".join(texts(line(label="two\nlines")))


def test_undefined_points_are_left_out_and_so_are_their_intervals() -> None:
    series = Series("a", [1, 2, 3], [0.5, None, 0.7], [0.4, None, None], [0.6, None, 0.6])
    assert series.points() == ([1, 3], [0.5, 0.7], [[0.5 - 0.4, 0.0], [0.6 - 0.5, 0.0]])


def test_series_differ_by_more_than_colour() -> None:
    looks = [(style(i)["marker"], style(i)["linestyle"]) for i in range(14)]
    assert len(set(looks)) == 14
