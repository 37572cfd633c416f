"""SPEC.md against the tests: every invariant names tests that exist, and these name it back; and the reverse."""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
INVARIANT = re.compile(r"^\*\*(\d+\.\d+)\*\* ", re.MULTILINE)
CITATION = re.compile(r"^ *# SPEC (\d+\.\d+(?:, \d+\.\d+)*)\n *(?:async )?def (test_\w+)", re.MULTILINE)
Cited = dict[str, set[str]]  # "tests/file.py::test_name" -> invariants


def stated() -> dict[str, list[str]]:
    """Each invariant of SPEC.md, and the tests that it names."""
    text = (ROOT / "SPEC.md").read_text(encoding="utf-8").partition("\n# Glossary")[0]
    parts = INVARIANT.split(text)[1:]
    return {
        number: re.findall(r"^`(tests/[\w/]+\.py::test_\w+)`$", body, re.MULTILINE)
        for number, body in zip(parts[::2], parts[1::2], strict=True)
    }


def citing() -> Cited:
    """Each test above which a comment cites invariants."""
    found: Cited = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        cited = CITATION.findall(text)
        assert len(cited) == len(re.findall(r"^ *# SPEC ", text, re.MULTILINE)), f"{path}: a citation above no test"
        for numbers, name in cited:
            found[f"{path.relative_to(ROOT).as_posix()}::{name}"] |= set(numbers.split(", "))
    return found


def test_every_invariant_names_tests_and_these_name_it_back() -> None:
    expected: Cited = defaultdict(set)
    for number, tests in stated().items():
        assert tests, f"{number} names no test"
        for test in tests:
            expected[test].add(number)
    assert dict(citing()) == dict(expected)


def test_invariants_are_numbered_in_order_and_once() -> None:
    text = (ROOT / "SPEC.md").read_text(encoding="utf-8")
    numbers = [tuple(map(int, number.split("."))) for number in INVARIANT.findall(text)]
    sections = [int(n) for n in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)]
    in_order = [(s, i) for s in sections for i in range(1, 1 + sum(n[0] == s for n in numbers))]
    assert numbers == in_order
    assert sections == list(range(1, 1 + len(sections)))
    assert {n[0] for n in numbers} >= set(sections)
