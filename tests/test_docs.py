"""The documentation: links lead somewhere, and Python that stands in a page runs."""

import ast
import re
from pathlib import Path

import pytest

import saelora

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
_FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The places in a page that a link may name."""
    text = _FENCED.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles} | {
        *re.findall(r'<a id="([^"]+)">', text)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_files_and_titles_that_are_there(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(file), f"{page.name} links to {target}, which is no title there"


def test_quoted_messages_are_those_of_the_source() -> None:
    """Each message's fixed words, those between the … of a quotation, stand in one text of the source."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^`(.+)`$", page, re.MULTILINE)
    assert len(quoted) >= 20
    assert len(re.findall(r"^:   ", page, re.MULTILINE)) == len(quoted)  # each with what is behind it
    texts = [
        node.value
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for message in quoted:
        for words in filter(None, (part.strip() for part in message.split("…"))):
            assert any(words in text for text in texts), f"no message of ours says {words!r}"


BLOCKS = {
    f"{page.relative_to(ROOT)}": blocks
    for page in PAGES
    if (blocks := re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))
}


@pytest.mark.parametrize("page", BLOCKS)
def test_python_in_a_page_names_what_is_there(page: str) -> None:
    """Without a model: it parses, and what it takes from saelora exists."""
    for block in BLOCKS[page]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "saelora":
                assert hasattr(saelora, node.attr), f"{page}: saelora.{node.attr}"
