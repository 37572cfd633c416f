"""The page to play with on the real default model: typed to, coloured, looked into, steered."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saelora.cli import main
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from served_page import served, visited

pytestmark = [pytest.mark.real, pytest.mark.timeout(600), pytest.mark.xdist_group("real")]
TOKENS = "article[data-variant={}] .tokens [role=option]"
DONE = "article[data-variant={}] .figures"
PROMPT = "The state of our union is"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("real") / "run"
    options = ["--tokens", "1024", "--eval-tokens", "512", "--history-points", "0", "--samples", "0", "--quiet"]
    code = main(["adapt", DEFAULT_MODEL, "--sae", DEFAULT_SAE, "--data", DEFAULT_DATA, "--out", str(out), *options])
    assert code in (0, 3)  # of so few tokens nothing is claimed
    with served(out, latent_tokens=512) as address:
        yield address


@pytest.fixture
def played(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    with visited(browser, address, patience=180) as go:
        yield go


def test_a_prompt_is_continued_coloured_looked_into_and_steered(played: Callable[..., Any]) -> None:
    shown = played()
    shown.locator("#prompt").fill(PROMPT)
    shown.locator("#longest").fill("8")
    shown.locator("#go").click()
    texts = {}
    for variant in ("original", "spliced", "adapted"):
        shown.locator(DONE.format(variant), has_text="KL" if variant != "original" else "loss").wait_for()
        texts[variant] = shown.locator(f"article[data-variant={variant}] .tokens").inner_text()
        assert PROMPT.split()[-1] in texts[variant]
        assert shown.locator(TOKENS.format(variant)).count() > 8
    for variant in ("spliced", "adapted"):
        classes = shown.locator(TOKENS.format(variant)).evaluate_all("all => all.map((one) => one.className).join(' ')")
        assert any(name in classes.split() for name in ("k1", "k2", "k3", "k4", "k5", "k6")), classes

    shown.locator(TOKENS.format("adapted")).nth(4).click()
    shown.locator("#glass td.up, #glass td.down").first.wait_for()
    activations = [float(x) for x in shown.locator("#glass .with-bar").all_inner_texts()]
    assert len(activations) == 16  # of the SAE's 32, before all are asked for
    assert activations == sorted(activations, reverse=True)

    latent = shown.locator("#glass a.latent").first.inner_text().lstrip("#")
    shown.locator("#latent-number").fill(latent)
    shown.keyboard.press("Enter")
    slider = shown.locator("#sliders input[type=range]")
    slider.focus()
    shown.keyboard.press("End")
    shown.locator("article[data-variant=adapted] .before", has_text="Not steered").wait_for()
    shown.locator(DONE.format("adapted"), has_text="KL").wait_for()
    assert shown.locator("article[data-variant=adapted] .tokens").inner_text() != texts["adapted"]
