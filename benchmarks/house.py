"""Sizes and loose ends of the source, as a table; several trees stand side by side.

python benchmarks/house.py . [OTHER_CHECKOUT ...] [--mypy]
"""

import argparse
import ast
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EVALUATION = "drift"  # the smallest one with a section of its own: what names it, a new one touches


def figures(root: Path) -> dict[str, int | float]:
    """The table's column of one checkout, by name of the line."""
    files = sorted((root / "src" / "saelora").rglob("*.py"))
    texts = {file: file.read_text() for file in files}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    functions = [
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    word = re.compile(rf"""["']{EVALUATION}["']|\.{EVALUATION}\b|import {EVALUATION}\b|\b{EVALUATION} import""")
    named = [file for file in files if EVALUATION in file.stem or word.search(texts[file])]
    inside = [file for file in files if EVALUATION in file.relative_to(root).parts]
    return {
        "files": sum(bool(text) for text in texts.values()),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
        "code lines": sum(code_lines(texts[file], trees[file]) for file in files),
        "largest file": max(len(text.splitlines()) for text in texts.values()),
        "functions": len(functions),
        "median function": statistics.median(functions),
        "longest function": max(functions),
        "`config: Any`": sum(len(re.findall(r"\bconfig: Any\b", text)) for text in texts.values()),
        "`dict[str, Any]`": sum(text.count("dict[str, Any]") for text in texts.values()),
        "parameters typed Any": sum(map(untyped, trees.values())),
        f"files that name the evaluation {EVALUATION}, outside its folder": len({*named} - {*inside}),
        "folders of these": len({file.parent for file in {*named} - {*inside}}),
    }


def code_lines(text: str, tree: ast.Module) -> int:
    """Lines that hold code: neither blank nor comment, docstring or import."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ):
            left_out |= {*range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(text.splitlines(), 1)
    return sum(i not in left_out and bool(line.strip()) and not line.strip().startswith("#") for i, line in lines)


def untyped(tree: ast.Module) -> int:
    """Parameters whose type is Any, alone."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation is not None]
    return sum(isinstance(node.annotation, ast.Name) and node.annotation.id == "Any" for node in found)


def strict_errors(root: Path) -> int:
    """Errors of mypy --strict without the project's own exceptions."""
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as config:
        config.write("[mypy]\nignore_missing_imports = True\nuntyped_calls_exclude = torch,transformers\n")
        config.flush()
        words = [sys.executable, "-m", "mypy", "--strict", "--config-file", config.name, "--python-version", "3.11"]
        done = subprocess.run([*words, "src"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.count(": error:")


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, help="checkouts, in the order of the columns")
    parser.add_argument("--mypy", action="store_true", help="count errors of mypy --strict too: a minute each")
    args = parser.parse_args()
    columns = [figures(root) for root in args.roots]
    if args.mypy:
        for root, column in zip(args.roots, columns, strict=True):
            column["mypy --strict errors"] = strict_errors(root)
    print("| | " + " | ".join(root.resolve().name for root in args.roots) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:,}" for column in columns) + " |")


if __name__ == "__main__":
    main()
