"""Tables of any results: CSV, Markdown, aligned plain text."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelora.files import write_whole

Row = dict[str, Any]
Lines = Sequence[Sequence[str]]  # the header, then a line for each row; all of one length


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows with their scalar columns, lists joined by spaces and intervals in two columns; written whole."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(flat)
    write_whole(path, text.getvalue().encode())


def _flat(row: Row) -> Row:
    out: Row = {}
    for key, value in row.items():
        if key == "ci95":
            for name, (low, high) in value.items():
                out |= {f"{name}_low": low, f"{name}_high": high}
        elif isinstance(value, list):
            out[key] = " ".join(map(str, value))
        elif not isinstance(value, dict):
            out[key] = value
    return out


def markdown(lines: Lines) -> str:
    """The table in Markdown."""
    header, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rest))


def aligned(lines: Lines) -> str:
    """The table in plain text, its columns under one another."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
