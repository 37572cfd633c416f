"""A headless Chromium, where there is one, and the pages that it opens from disk."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from page_collections import write_comparison, write_sweep
from page_runs import write_run
from saelora.reporting.page import collection_page, page, read_collection, read_runs
from served_page import STILL

ARGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
ARGS += "--disable-component-update --disable-sync"
AXE = "axe-core@4.10.3"


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
    """A folder of pages: one.html (every part), hostile.html, several.html, plain.html (no part measured), two.html,
    sweep.html, comparison.html.
    """
    folder = tmp_path_factory.mktemp("pages")
    one = write_run(folder / "one")
    hostile = write_run(folder / "hos<b>tile", seed=1, hostile=True)
    plain = write_run(folder / "plain", seed=2, parts=False)
    of_runs = {"one": [one], "hostile": [hostile], "several": [one, hostile, plain], "plain": [plain]}
    for name, runs in {**of_runs, "two": [one, hostile]}.items():
        (folder / f"{name}.html").write_text(page(read_runs(runs)), encoding="utf-8")
    for made in (write_sweep(folder / "sweep"), write_comparison(folder / "comparison")):
        found = read_collection(made)
        assert found is not None
        (folder / f"{made.name}.html").write_text(collection_page(found, folder), encoding="utf-8")
    return folder


@pytest.fixture
def opened(browser: Any, pages: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page and its chapters; afterwards nothing was asked of the network, nor went wrong in the console."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def go(name: str, *, folded: bool = False, **options: Any) -> Any:
        context = browser.new_context(**STILL | options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        shown.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        shown.on("request", lambda request: _note(request.url, trouble))
        shown.goto((pages / f"{name}.html").as_uri())
        if not folded:
            shown.evaluate("document.querySelectorAll('details.chapter').forEach((each) => { each.open = true; })")
        return shown

    yield go
    for context in contexts:
        context.close()
    assert trouble == []


def _note(url: str, trouble: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        trouble.append(f"request: {url}")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not there to fetch axe-core")
    folder = tmp_path_factory.mktemp("axe")
    made = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, timeout=120)
    if made.returncode:
        pytest.skip(f"axe-core cannot be fetched: {made.stderr.decode()[-200:]}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder)
    return folder / "package" / "axe.min.js"
