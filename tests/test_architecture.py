"""docs/architecture.md names what is there: a page that has fallen behind misleads more than none."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "saelora"
ROOMS = sorted(path.stem for path in SOURCE.iterdir() if not path.name.startswith("_") and path.suffix in ("", ".py"))
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`", TEXT)))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_is_there(name: str) -> None:
    place, parts = SOURCE, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        place /= f"{parts.pop(0)}.py"
    text = place.read_text(encoding="utf-8") if place.is_file() else ""
    missing = [p for p in parts if not re.search(rf"^\s*(?:(?:def|class) {p}\b|{p}\b.* = )", text, re.MULTILINE)]
    assert not missing, f"{name}: no {'.'.join(missing)} in {place.relative_to(ROOT)}"


def test_every_room_is_on_the_page() -> None:
    assert len(NAMES) > 20
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= set(re.findall(r"\w+", TEXT))
