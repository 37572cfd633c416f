"""The page to play with, served with a tiny run, in a real browser: by mouse, finger and keyboard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import workspace as ws
from served_page import served, visited

pytestmark = pytest.mark.xdist_group("browser")
TOKENS = "article[data-variant={}] .tokens [role=option]"


@pytest.fixture(scope="module")
def address(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("played") / "<b>run</b>"
    assert workspace.adapt(out, "--quiet") == 0
    with served(out, out.parent / "cache") as address:
        yield address


@pytest.fixture
def played(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    with visited(browser, address) as go:
        yield go


def continued(shown: Any, prompt: str = "bada lume") -> None:
    shown.locator("#prompt").fill(prompt)
    shown.locator("#longest").fill("6")
    shown.locator("#go").click()
    shown.locator("article[data-variant=adapted] .figures", has_text="mean KL").wait_for()


def test_three_columns_are_continued_and_coloured(played: Callable[..., Any]) -> None:
    shown = played()
    continued(shown)
    for variant in ("original", "spliced", "adapted"):
        assert shown.locator(TOKENS.format(variant)).count() > 6
    classes = shown.locator(TOKENS.format("spliced")).evaluate_all("all => all.map((one) => one.className).join()")
    assert "k" in classes.replace("prompt", "")
    shown.locator("#quantity").select_option("loss")
    assert "q" in str(shown.locator(TOKENS.format("spliced")).evaluate_all("all => all.map((x) => x.className).join()"))
    assert "nats" in shown.locator("#legend").inner_text()
    assert shown.title() == "b> · saelora"  # the last part of the run's path; no element was made of it


def test_a_token_shows_latents_next_tokens_and_ablations_by_keyboard(played: Callable[..., Any]) -> None:
    shown = played()
    continued(shown)
    first = shown.locator(TOKENS.format("adapted")).first
    first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        shown.keyboard.press(key)
    shown.locator("#glass td.up, #glass td.down").first.wait_for()
    assert shown.locator("#glass .nexts > div").count() == 4
    assert "position 2" in shown.locator("#glass").inner_text()
    activations = shown.locator("#glass .with-bar").all_inner_texts()
    assert len(activations) == ws.K
    assert [float(x) for x in activations] == sorted(map(float, activations), reverse=True)


def test_a_slider_steers_and_shows_what_was_said_without(played: Callable[..., Any]) -> None:
    shown = played()
    continued(shown)
    plain = shown.locator("article[data-variant=adapted] .tokens").inner_text()
    shown.locator("#latent-number").fill("3")
    shown.keyboard.press("Enter")
    shown.locator("#sliders input[type=number]").fill("400")
    shown.locator("article[data-variant=adapted] .before").wait_for()
    assert "Not steered" in shown.locator("article[data-variant=adapted] .before").inner_text()
    assert shown.locator("article[data-variant=adapted] .tokens").inner_text() != plain
    shown.locator("#steer-off").click()
    shown.locator("article[data-variant=adapted] .before").wait_for(state="hidden")
    shown.locator("article[data-variant=adapted] .figures", has_text="mean KL").wait_for()
    assert shown.locator("article[data-variant=adapted] .tokens").inner_text() == plain


def test_latents_are_listed_searched_and_shown(played: Callable[..., Any]) -> None:
    shown = played("#latents")
    rows = shown.locator("#list tbody tr")
    rows.first.wait_for()
    assert rows.count() == 50
    shown.locator("#search").fill("#7")
    shown.locator("#counted", has_text="1 latents").wait_for()
    shown.locator("#list tbody a").click()
    shown.locator("#one-body h3", has_text="Logit weights").wait_for()
    assert shown.locator(".near a").count() == 8
    assert "original and adapted have the same" in shown.locator("#one-body").inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_and_the_token_stays_in_sight(played: Callable[..., Any], width: int) -> None:
    shown = played(viewport={"width": width, "height": 800})
    continued(shown)
    token = shown.locator(TOKENS.format("spliced")).nth(3)
    token.click()
    shown.locator("#glass td.up, #glass td.down").first.wait_for()
    box, glass = token.bounding_box(), shown.locator("#glass").bounding_box()
    assert box["y"] + box["height"] <= glass["y"] or box["x"] + box["width"] <= glass["x"]
    for view in ("play", "latents"):
        shown.locator(f"#to-{view}").click()
        assert shown.locator("html").evaluate("root => root.scrollWidth") <= width


def test_the_policy_allows_this_server_alone(played: Callable[..., Any], address: str) -> None:
    response = played().request.get(f"{address}/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(played: Callable[..., Any], axe: Path, scheme: str) -> None:
    shown = played(color_scheme=scheme, bypass_csp=True)
    shown.add_script_tag(path=str(axe))
    continued(shown)
    shown.locator(TOKENS.format("spliced")).nth(3).click()
    shown.locator("#glass td.up, #glass td.down").first.wait_for()
    run = "() => axe.run().then((found) => found.violations.map((one) => [one.impact, one.id, one.nodes[0].html]))"
    assert [each for each in shown.evaluate(run) if each[0] in ("serious", "critical")] == []
    shown.locator("#to-latents").click()
    shown.locator("#list tbody a").first.click()
    shown.locator("#one-body h3", has_text="Logit weights").wait_for()
    assert [each for each in shown.evaluate(run) if each[0] in ("serious", "critical")] == []


def test_a_count_that_cannot_be_kept_says_so(
    workspace: ws.Workspace, browser: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert workspace.adapt(out, "--quiet") == 0
    (tmp_path / "cache").write_text("a file, where a folder is to be made")
    with served(out, tmp_path / "cache") as address, visited(browser, address) as go:
        shown = go("#latents")
        shown.locator("#list tbody tr").first.wait_for()
        shown.reload()
        shown.locator("#counted", has_text="it cannot be kept, and will be counted again next time").wait_for()
    said = [line for line in capfd.readouterr().err.splitlines() if "the count of latents" in line]
    assert len(said) == 1
    assert "will be counted again" in said[0]
