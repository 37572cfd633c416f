"""The figures of the source's size count what they say."""

from pathlib import Path

from house import figures

SOURCE = '''"""Doc."""

import os
from typing import Any


def short(config: Any) -> dict[str, Any]:
    """Two lines
    of docstring."""
    # a comment
    return {"drift": config}


def long(x: int) -> int:
    x += 1

    return x + len(os.sep)
'''


def test_figures_of_a_small_tree(tmp_path: Path) -> None:
    rooms = tmp_path / "src" / "saelora"
    (rooms / "evals" / "drift").mkdir(parents=True)
    (rooms / "evals" / "drift" / "result.py").write_text("x = 'drift'\n")
    (rooms / "evals" / "__init__.py").write_text("")
    (rooms / "evals" / "registry.py").write_text("from saelora.evals.drift import result\n")
    (rooms / "a.py").write_text(SOURCE)
    assert figures(tmp_path) == {
        "files": 3,
        "lines": 19,
        "code lines": 6,
        "largest file": 17,
        "functions": 2,
        "median function": 4.5,
        "longest function": 5,
        "`config: Any`": 1,
        "`dict[str, Any]`": 1,
        "parameters typed Any": 1,
        "files that name the evaluation drift, outside its folder": 2,
        "folders of these": 2,
    }
