"""The report in a real browser: it works, by mouse, finger and keyboard, and nothing in its texts does."""

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from page_runs import HOSTILE

Opened = Callable[..., Any]
NAMES = ("one", "hostile", "several", "plain")
SPAN = "#token-list > span"
pytestmark = pytest.mark.xdist_group("browser")  # one browser, not one a worker


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_page_does_not_scroll_sideways(opened: Opened, name: str, width: int) -> None:
    shown = opened(name, viewport={"width": width, "height": 800})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    for each in shown.query_selector_all("details"):
        each.evaluate("node => { node.open = true }")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", NAMES)
def test_everything_has_a_name_and_headings_are_in_order(opened: Opened, name: str) -> None:
    found = opened(name).evaluate("""() => {
      const all = (selector) => [...document.querySelectorAll(selector)];
      const told = (node) => (node.getAttribute("aria-label") || node.textContent
        || document.getElementById(node.getAttribute("aria-labelledby"))?.textContent || "").trim();
      const ids = all("[id]").map((node) => node.id);
      return {
        headings: all("h1, h2, h3, h4").map((node) => Number(node.tagName[1])),
        nameless: all("button, summary, a[href], [role=region], [role=img], [role=listbox], nav, section")
          .filter((node) => !told(node)).map((node) => node.outerHTML.slice(0, 100)),
        unlabelled: all("select").filter((node) => !node.labels.length).length,
        repeated: ids.filter((id, i) => ids.indexOf(id) !== i),
        dangling: all("[aria-labelledby], [aria-describedby]").flatMap((node) =>
          [node.getAttribute("aria-labelledby"), node.getAttribute("aria-describedby")])
          .filter((id) => id && !document.getElementById(id)),
        figures: all("figure").every((node) => node.querySelector("figcaption") && node.querySelector("[role=img]")
          && node.querySelector("details table tbody tr")),
        bare: all("svg").filter((node) => !node.closest("[role=img]")).length,
        headers: all("main table").every((node) => node.querySelector("th[scope=col]")
          && node.querySelector("th[scope=row]")),
        landmarks: ["header", "nav", "main", "footer"].map((tag) => all(`body > ${tag}`).length),
        lang: document.documentElement.lang,
      };
    }""")
    assert found["headings"].count(1) == 1
    steps = zip(found["headings"], found["headings"][1:], strict=False)
    assert all(after - before <= 1 for before, after in steps)
    assert found["nameless"] == []
    assert found["repeated"] == []
    assert found["dangling"] == []
    assert (found["unlabelled"], found["bare"]) == (0, 0)
    assert found["figures"]
    assert found["headers"]
    assert found["landmarks"] == [1, 1, 1, 1]
    assert found["lang"] == "en"


def test_hover_shows_losses_and_next_tokens(opened: Opened) -> None:
    shown = opened("one")
    shown.locator(SPAN).nth(10).hover()
    card = shown.locator("#card")
    for told in ("original", "spliced", "adapted", "Change adapted − spliced", "Likeliest next tokens, adapted"):
        assert told in card.inner_text()
    assert card.locator("li").count() == 15
    data = shown.evaluate("""() => {
      const passage = JSON.parse(document.getElementById("data").textContent).runs[0].passages[0];
      return [passage.ce.map((arm) => arm[10].toFixed(3)), passage.top[10][2][1]];
    }""")
    cells = [row.locator("td").first.inner_text() for row in card.locator("tbody tr").all()]
    assert cells == data[0]
    assert f"{data[1] / 10:.1f}%" in card.locator("ol").nth(2).inner_text()


def test_keyboard_reaches_tokens_and_escape_closes_the_card(opened: Opened) -> None:
    shown = opened("one")
    shown.locator("#next").focus()
    shown.keyboard.press("Tab")
    focused = "document.activeElement.dataset.i"
    assert shown.evaluate(focused) == "24"  # the passage's focus
    shown.keyboard.press("Home")
    assert shown.evaluate(focused) == "0"
    assert "Nothing predicts it" in shown.locator("#card").inner_text()
    shown.keyboard.press("ArrowRight")
    assert shown.evaluate(focused) == "1"
    assert "Likeliest next tokens" in shown.locator("#card").inner_text()
    assert "Loss: original" in shown.locator("#live").inner_text()
    shown.keyboard.press("ArrowDown")
    assert int(shown.evaluate(focused)) > 2
    shown.keyboard.press("End")
    assert shown.evaluate(focused) == "47"
    assert shown.locator(f'{SPAN}[tabindex="0"]').count() == 1
    shown.keyboard.press("Escape")
    assert "Likeliest" not in shown.locator("#card").inner_text()


def test_a_tap_opens_the_card_on_a_phone_and_close_shuts_it(opened: Opened) -> None:
    shown = opened("one", viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    card = shown.locator("#card")
    assert not card.is_visible()
    shown.locator(SPAN).nth(12).tap()
    assert card.is_visible()
    assert "Likeliest next tokens, spliced" in card.inner_text()
    shown.locator("#close").tap()
    assert not card.is_visible()


def test_colours_follow_the_chosen_quantity_and_passage(opened: Opened) -> None:
    shown = opened("one")
    classes = f"[...document.querySelectorAll('{SPAN}')].map((span) => span.className).join()"
    change = shown.evaluate(classes)
    assert "h" in change
    assert "u" in change
    legend = shown.locator("#legend").inner_text()
    shown.locator("#quantity").select_option(label="Loss, original model")
    assert "q" in shown.evaluate(classes)
    assert shown.evaluate(classes) != change
    assert shown.locator("#legend").inner_text() != legend
    about = shown.locator("#passage-about").inner_text()
    shown.locator("#next").click()
    assert shown.locator("#passage-about").inner_text() != about
    groups = shown.locator("#passage optgroup").evaluate_all("nodes => nodes.map((node) => node.label)")
    assert groups == ["Most helped", "Most hurt", "Whole rows"]
    shown.locator("#passage").select_option(index=10)
    exempt = shown.locator(f"{SPAN}.uncounted")
    assert exempt.count() == 2
    exempt.nth(1).focus()
    assert "a position that the SAE leaves alone" in shown.locator("#card").inner_text()


def test_of_several_runs_one_is_chosen_for_the_text(opened: Opened) -> None:
    shown = opened("several")
    assert shown.locator("#run option").count() == 2  # the third has no tokens measured
    before = shown.locator("#passage-about").inner_text()
    shown.locator("#run").select_option(index=1)
    assert shown.locator("#passage-about").inner_text() != before
    assert "saelora evaluate --adapter" in shown.locator("#tokens .missing").inner_text()


def test_dark_mode_follows_the_system_and_the_button(opened: Opened) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened("one", color_scheme="light"), opened("one", color_scheme="dark")
    bright, dim = light.evaluate(ground), dark.evaluate(ground)
    assert bright != dim
    light.locator("#theme").click()
    assert light.evaluate(ground) == dim
    assert light.locator("#theme").get_attribute("aria-pressed") == "true"
    dark.locator("#theme").click()
    assert dark.evaluate(ground) == bright


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened: Opened, scheme: str) -> None:
    """WCAG's 4.5 : 1 for every colour of text on every ground it is used on, the tokens' shades among them."""
    worst = opened("one", color_scheme=scheme).evaluate("""() => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const root = getComputedStyle(document.documentElement);
      const light = (paints) => {
        context.clearRect(0, 0, 1, 1);
        for (const paint of paints) { context.fillStyle = paint; context.fillRect(0, 0, 1, 1); }
        const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((x) => x / 255)
          .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
      };
      const of = (name) => root.getPropertyValue(name).trim();
      const pairs = [];
      for (const text of ["--ink", "--muted", "--link", "--warn"]) for (const ground of ["--bg", "--panel"]) {
        pairs.push([`${text} on ${ground}`, [of(text)], [of(ground)]]);
      }
      for (const shade of ["q1", "q2", "q3", "q4", "q5", "q6", "h1", "h2", "h3", "h4", "u1", "u2", "u3", "u4", "s5"]) {
        const probe = document.body.appendChild(Object.assign(document.createElement("span"), { className: shade }));
        pairs.push([shade, [of("--ink")], [of("--bg"), getComputedStyle(probe).backgroundColor]]);
      }
      return pairs.map(([name, text, ground]) => {
        const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
        return [(a + 0.05) / (b + 0.05), name];
      }).sort((x, y) => x[0] - y[0])[0];
    }""")
    assert worst[0] >= 4.5, worst


def test_figures_and_tables_are_exported(opened: Opened, tmp_path: Path) -> None:
    shown = opened("one")

    def saved(kind: str, of: str) -> bytes:
        with shown.expect_download() as download:
            shown.locator(f'button[data-export="{kind}"][data-of="{of}"]').click()
        assert download.value.suggested_filename == f"{of}.{kind}"
        download.value.save_as(tmp_path / kind)
        return (tmp_path / kind).read_bytes()

    svg = saved("svg", "gap")
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"var(" not in svg
    assert b"won back" in svg
    png = saved("png", "gap")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) > 5000
    rows = list(csv.DictReader(io.StringIO(saved("csv", "gap").decode())))
    assert len(rows) == 1
    assert float(rows[0]["CE original"]) == 3.3935
    assert float(rows[0]["gap closed low"]) < float(rows[0]["gap closed"]) < float(rows[0]["gap closed high"])


def test_print_shows_what_is_folded_and_no_navigation(opened: Opened) -> None:
    shown = opened("one")
    table = shown.locator("#figure-gap details table")
    assert not table.is_visible()
    shown.emulate_media(media="print")
    folded = shown.locator("details:not([open])")
    folded.first.wait_for(state="detached")
    assert table.is_visible()
    assert not shown.locator("nav").is_visible()
    shown.emulate_media(media="screen")
    folded.first.wait_for(state="attached")


def test_a_table_that_is_a_list_on_a_narrow_screen_is_a_table_on_paper(opened: Opened) -> None:
    shown = opened("one")
    shown.set_viewport_size({"width": 390, "height": 800})
    row = shown.locator("table.stacked tbody tr:visible").first
    row.wait_for()
    heading, cell = row.locator("xpath=ancestor::table/thead"), row.locator("td").first
    shape = (
        "each => [getComputedStyle(each).display, getComputedStyle(each, '::before').content, each.offsetHeight > 1]"
    )
    assert row.evaluate(shape)[0] == "grid"
    assert not heading.evaluate(shape)[2]
    assert cell.evaluate(shape)[1] != "none"
    shown.emulate_media(media="print")
    assert row.evaluate(shape)[0] == "table-row"
    assert heading.evaluate(shape)[2]
    assert cell.evaluate(shape)[1] == "none"


def test_skip_link_leads_to_the_results(opened: Opened) -> None:
    shown = opened("one")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the results"
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "main"


def test_hostile_texts_stay_text(opened: Opened) -> None:
    """No dialog, no error (see ``opened``), no element that a text made, and what steers text is shown by its name."""
    shown = opened("hostile")
    title = shown.title()
    assert "owned" in title  # the model's name, as text
    assert shown.evaluate("document.scripts.length") == 2
    made = "document.querySelectorAll('img, iframe, object, embed, b, [onerror], [onmouseover]').length"
    assert shown.evaluate(made) == 0
    for i in range(shown.locator("#passage option").count()):
        shown.locator("#passage").select_option(index=i)
        shown.locator(SPAN).nth(5).focus()
    assert shown.evaluate("document.scripts.length") == 2
    assert shown.evaluate(made) == 0
    assert shown.title() == title
    shown.locator("#passage").select_option(index=10)
    assert HOSTILE[0] in shown.locator(SPAN).nth(3).text_content()
    assert shown.locator(SPAN).nth(5).text_content() == "U+202Eesrever"[:6] + "esreverU+202C"
    assert shown.locator(SPAN).nth(6).text_content() == "x" * 200 + "… (10,000 characters)"
    assert shown.locator(SPAN).nth(8).text_content() == "U+200B"
    assert shown.locator(SPAN).nth(9).text_content() == "U+0000U+0007"
    assert shown.locator(SPAN).nth(10).text_content() == HOSTILE[7]
    assert shown.locator(SPAN).nth(11).text_content() == "?"
    assert shown.locator(SPAN).nth(12).text_content() == "↵\n"
    assert shown.evaluate("document.body.innerText.match(/[\\u202a-\\u202e\\u2066-\\u2069\\u200b]/)") is None


def test_the_policy_forbids_scripts_that_are_not_ours(browser: Any, pages: Path) -> None:
    shown = browser.new_page()
    shown.goto((pages / "plain.html").as_uri())
    ran = shown.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      return window.ran === true;
    }""")
    shown.close()
    assert not ran
