"""A headless Chromium, where there is one, and the pages that it opens from disk."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from page_runs import write_run
from saelora.reporting.page import page, read_runs

ARGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
ARGS += "--disable-component-update --disable-sync"


def _chromium() -> str | None:
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
    if (path := _chromium()) is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with sync.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGS.split())
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pages: one.html (every part), hostile.html, several.html, plain.html (no part measured)."""
    folder = tmp_path_factory.mktemp("pages")
    one = write_run(folder / "one")
    hostile = write_run(folder / "hos<b>tile", seed=1, hostile=True)
    plain = write_run(folder / "plain", seed=2, parts=False)
    for name, runs in {"one": [one], "hostile": [hostile], "several": [one, hostile, plain], "plain": [plain]}.items():
        (folder / f"{name}.html").write_text(page(read_runs(runs)), encoding="utf-8")
    return folder


@pytest.fixture
def opened(browser: Any, pages: Path) -> Iterator[Callable[..., Any]]:
    """Opens one of the pages; afterwards nothing may have been asked of the network or gone wrong in the console."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def go(name: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        shown.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        shown.on("request", lambda request: _note(request.url, trouble))
        shown.goto((pages / f"{name}.html").as_uri())
        return shown

    yield go
    for context in contexts:
        context.close()
    assert trouble == []


def _note(url: str, trouble: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        trouble.append(f"request: {url}")
