"""One column of a JSON Lines or Parquet file, row by row.

The column alone is read: what the others hold, of which types and how those change along the file, does not matter.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any

from saelora.errors import InputError, first_line
from saelora.records import JsonObject

TABLES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_PATIENCE_BYTES = 10 << 20  # a JSON Lines file without the column in so many bytes does not have it
_BATCH_ROWS = 1024  # of a Parquet file, held at once


def read_column(file: IO[bytes], label: str, column: str) -> Iterator[str | None]:
    """The column's texts in the file's order; None for a row that has none (null, or no such key).

    Args:
        file: open for reading, its content that of the kind that `label` ends in.
        label: the file's name, for messages.

    Raises:
        InputError: damaged, no such column, or a text that is no string.
    """
    from pyarrow import ArrowException  # here, because a run in use reads no data

    rows = _parquet(file, label, column) if label.endswith(".parquet") else _json_lines(file, label, column)
    index = 0
    while True:
        try:
            text = next(rows)
        except StopIteration:
            return
        except (OSError, EOFError, ValueError, zlib.error, RecursionError, ArrowException) as error:
            raise InputError(f"{label} cannot be read after {index} rows: {first_line(error)}") from error
        yield checked(text, label, index, column)
        index += 1


def checked(text: Any, label: str, index: int, column: str) -> str | None:
    """The text of one row, if it is one.

    Raises:
        InputError: it is neither a string nor null.
    """
    if text is None or isinstance(text, str):
        return text
    raise InputError(f"{label} row {index}: column {column!r} holds {type(text).__name__}, expected a string")


def no_column(label: str, column: str, found: list[str]) -> InputError:
    """What to say where rows lack the column that was asked for."""
    shown = ", ".join(map(repr, found[:20])) + (", ..." if len(found) > 20 else "")
    return InputError(f"{label} has no column {column!r}, only {shown or 'empty rows'}: give one as --text-column")


def _json_lines(file: IO[bytes], label: str, column: str) -> Iterator[Any]:
    others: dict[str, None] | None = {}  # the keys seen, in order, as long as the column is not among them
    n_bytes = 0
    for number, line in enumerate(_unpacked(file, label), 1):
        row = _json_object(line, number)
        if row is None:
            continue
        if others is not None:
            n_bytes += len(line)
            others = None if column in row else others | dict.fromkeys(row)
            if others is not None and n_bytes > _PATIENCE_BYTES:
                raise no_column(label, column, list(others))
        value = row.get(column)
        if isinstance(value, str) and b"\\u" in line:
            _check_encodable(value, number)
        yield value
    if others is not None and n_bytes:
        raise no_column(label, column, list(others))


def _json_object(line: bytes, number: int) -> JsonObject | None:
    """The object of a line, None for a blank one. Raises ValueError if it is anything else."""
    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    if not text:
        return None
    try:
        row = json.loads(text, parse_int=_integer)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON ({first_line(error)}), expected one object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is JSON of another kind ({type(row).__name__}), expected one object a line")
    return row


def _integer(digits: str) -> int:
    """A whole number, of other columns too, where Python refuses to parse one of thousands of digits."""
    return int(digits[:20])


def _check_encodable(text: str, line: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"line {line} holds half of a surrogate pair, which is no character") from error


def _unpacked(file: IO[bytes], label: str) -> IO[bytes]:
    if label.endswith(".gz"):
        return gzip.open(file)  # type: ignore[return-value]
    if label.endswith(".zst"):
        from pyarrow import CompressedInputStream

        return io.BufferedReader(CompressedInputStream(file, "zstd"))
    return file


def _parquet(file: IO[bytes], label: str, column: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    if column not in (names := table.schema_arrow.names):
        raise no_column(label, column, names)
    for batch in table.iter_batches(_BATCH_ROWS, columns=[column]):
        yield from batch.column(column).to_pylist()
