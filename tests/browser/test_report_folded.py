"""The report at first sight, and how it unfolds: by mouse, finger and keyboard, at the widths of a phone and a desk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Opened = Callable[..., Any]
SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 800}}
NAMES = ("one", "hostile", "plain", "two", "sweep", "comparison")
SPAN = "#token-list > span"
pytestmark = pytest.mark.xdist_group("browser")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("one", "wins back 42.6% of that (95 % interval 38.3% to 47.0%)"),
        ("two", "Of 2 runs, "),
        ("sweep", "Of 3 points, rank 16 wins back most of what its SAE costs: 40.0% (95 % interval 39.0% to 42.0%)"),
        ("comparison", "closes most of the SAE's gap with 1,000 tokens"),
    ],
)
def test_the_first_screen_holds_the_gain_in_a_sentence_and_a_picture(
    opened: Opened, name: str, told: str, size: str
) -> None:
    shown = opened(name, folded=True, viewport=SIZES[size])
    sentence, picture = shown.locator("header .headline"), shown.locator("header .lead svg")
    assert told in sentence.inner_text()
    box = picture.bounding_box()
    assert box["y"] > sentence.bounding_box()["y"]
    assert box["y"] + box["height"] <= SIZES[size]["height"]
    assert box["width"] > 300


@pytest.mark.parametrize(("size", "most"), [("phone", 6000), ("desk", 3500)])
def test_two_runs_are_short_at_first_sight(opened: Opened, size: str, most: int) -> None:
    shown = opened("two", folded=True, viewport=SIZES[size])
    assert shown.evaluate("document.documentElement.scrollHeight") <= most


def test_every_folded_chapter_says_its_main_number(opened: Opened) -> None:
    shown = opened("one", folded=True)
    chapters = shown.locator("details.chapter:not([open])")
    assert chapters.count() == 11
    for chapter in chapters.all():
        told = chapter.locator("summary .gist").first
        assert told.is_visible()
        assert (
            any(letter.isdigit() for letter in told.inner_text())
            or "reads its SAE" in told.inner_text()
            or (
                "cannot change" in told.inner_text()
                or any(words in told.inner_text() for words in ("better on", "Not counted yet"))
            )
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_no_table_is_wider_than_its_box(opened: Opened, name: str, size: str) -> None:
    shown = opened(name, folded=True, viewport=SIZES[size])
    while shown.locator("#unfold").inner_text() != "Fold all":
        shown.locator("#unfold").click()
    shown.evaluate("new Promise(requestAnimationFrame)")
    wide = """() => [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth)
      .map((box) => box.querySelector("table").dataset.name)"""
    assert shown.evaluate(wide) == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    clear = "[...document.querySelectorAll('main table')].every((table) => table.getBoundingClientRect().height > 20)"
    assert shown.evaluate(clear)


def test_a_table_fits_again_when_the_window_gets_narrower(opened: Opened) -> None:
    shown = opened("one", viewport={"width": 1280, "height": 800})
    table = shown.locator("#results table").first
    assert "stacked" not in (table.get_attribute("class") or "")
    shown.set_viewport_size({"width": 390, "height": 800})
    shown.locator("table[data-name=results-first-1].stacked").wait_for()
    assert "cross entropy" in shown.locator("#results td").first.evaluate(
        "td => getComputedStyle(td, '::before').content"
    )
    shown.set_viewport_size({"width": 1280, "height": 800})
    shown.locator("table[data-name=results-first-1].stacked").wait_for(state="detached")


@pytest.mark.parametrize("size", SIZES)
def test_the_card_never_covers_its_token(opened: Opened, size: str) -> None:
    phone = size == "phone"
    shown = opened("one", viewport=SIZES[size], has_touch=phone, is_mobile=phone)
    shown.locator("#passage").select_option(index=10)  # a whole row
    tokens, card = shown.locator(SPAN), shown.locator("#card")

    def clear() -> bool:
        box, over = shown.locator(f'{SPAN}[aria-selected="true"]').bounding_box(), card.bounding_box()
        apart = box["y"] + box["height"] <= over["y"] or box["y"] >= over["y"] + over["height"]
        return apart or box["x"] + box["width"] <= over["x"] or box["x"] >= over["x"] + over["width"]

    for i in (1, 30, 60, tokens.count() - 1):
        for at in (0.05, 0.5, 0.95):  # from the top to the foot of the screen
            place = "(node, at) => window.scrollBy(0, node.getBoundingClientRect().top - at * innerHeight)"
            tokens.nth(i).evaluate(place, at)
            (tokens.nth(i).tap if phone else tokens.nth(i).click)()
            assert "Likeliest next tokens" in card.inner_text()
            assert clear(), (i, at)
            shown.mouse.wheel(0, 40)
            shown.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert clear(), (i, at, "scrolled")
    tokens.nth(5).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "End"):
        shown.keyboard.press(key)
        assert clear(), key
    shown.keyboard.press("Escape")
    assert "Likeliest" not in card.inner_text()


def test_chapters_unfold_by_keyboard_by_link_and_all_at_once(opened: Opened) -> None:
    shown = opened("one", folded=True)
    tokens = shown.locator("#tokens > details")
    tokens.locator("> summary").focus()
    shown.keyboard.press("Enter")
    assert tokens.get_attribute("open") is not None
    shown.locator("nav a[href='#drift']").click()
    assert shown.locator("#figure-relative-l2").is_visible()
    shown.locator("#unfold").click()
    assert shown.locator("main details:not([open])").count() == 0
    assert shown.locator("#unfold").inner_text() == "Fold all"
    shown.locator("#unfold").click()
    assert shown.locator("main details[open]").count() == 0


def test_code_is_copied_as_it_stands(opened: Opened, pages: Path) -> None:
    shown = opened("one", permissions=["clipboard-read", "clipboard-write"])
    buttons = shown.locator("#use button[data-copy]")
    assert buttons.count() == 3
    buttons.first.click()
    shown.locator("#said", has_text="Copied").wait_for()
    copied = shown.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[:2] == ["import saelora", f"run = saelora.load({str(pages / 'one')!r})"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two", "sweep", "comparison"])
def test_axe_finds_nothing_serious(opened: Opened, axe: Path, name: str, scheme: str) -> None:
    run = "() => axe.run().then((found) => found.violations.map((one) => [one.impact, one.id, one.nodes[0].html]))"
    shown = opened(name, folded=True, color_scheme=scheme, bypass_csp=True, viewport=SIZES["phone"])
    shown.add_script_tag(path=str(axe))
    assert [each for each in shown.evaluate(run) if each[0] in ("serious", "critical")] == []
    shown.evaluate("document.querySelectorAll('details.chapter').forEach((each) => { each.open = true; })")
    if name == "one":
        shown.locator(SPAN).nth(9).focus()
    assert [each for each in shown.evaluate(run) if each[0] in ("serious", "critical")] == []
