"""Text of hub datasets, streamed."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from saelora.data.tables import TABLES, checked, no_column, read_column
from saelora.errors import InputError, first_line


@dataclass(frozen=True)
class HubText:
    """A hub dataset at one commit: ``read(column)`` gives the column's texts row by row, None where a row has none."""

    commit: str | None
    read: Callable[[str], Iterator[str | None]]


@lru_cache(maxsize=8)  # what is asked before a model is loaded need not be asked again afterwards
def open_hub(name: str, split: str, subset: str | None, revision: str | None) -> HubText:
    """Find a hub dataset's files, at the commit that its branch has now.

    JSON Lines and Parquet files are read here, the one column alone; other kinds through `datasets`.

    Raises:
        InputError: no such dataset, subset or split, no access, or no network.
    """
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(name, subset, revision=revision)
        files = _plain_tables(builder, split)
        dataset = None if files else builder.as_streaming_dataset(split=split)
    except Exception as error:  # the hub, its client and the readers share no base class; all of it is about this name
        raise InputError(
            f"{name!r} is not a local path and cannot be opened as a hub dataset ({first_line(error)}): check the "
            f"name, --subset and --split; a gated dataset needs its terms accepted and `hf auth login`"
        ) from error
    # owner/name@commit, in older releases of datasets .../resolve/commit
    commit = re.search(r"(?:@|/resolve/)([0-9a-f]{40})", str(builder.base_path))
    read = (lambda column: _read_files(files, name, column)) if files else lambda c: _read_rows(dataset, name, c)
    return HubText(commit.group(1) if commit else revision, read)


def _plain_tables(builder: Any, split: str) -> list[str]:
    """Addresses of the split's files, where all are tables that `read_column` reads and nothing else is set; or none.

    A dataset whose card names a field, an encoding or the like is left to `datasets`.
    """
    config = builder.config
    files = [str(file) for file in (getattr(config, "data_files", None) or {}).get(split, [])]
    module = type(builder).__module__
    if not files or not all(file.endswith(TABLES) for file in files):
        return []
    if module.startswith("datasets.packaged_modules.parquet."):
        untouched = not config.filters and config.columns is None
    elif module.startswith("datasets.packaged_modules.json."):
        untouched = config.field is None and config.encoding == "utf-8"
    else:
        untouched = False
    return files if untouched else []


def _read_files(files: list[str], name: str, column: str) -> Iterator[str | None]:
    import fsspec

    for file in files:
        label = f"{name}/{file.rpartition('@')[2].partition('/')[2]}"
        try:
            opened = fsspec.open(file, "rb").open()
        except Exception as error:  # of whichever file system the address names
            raise InputError(f"{label} cannot be opened: {first_line(error)}") from error
        with opened:
            yield from read_column(opened, label, column)


def _read_rows(dataset: Any, name: str, column: str) -> Iterator[str | None]:
    rows = iter(dataset)
    index = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # parse, decompression and network errors of many libraries, all about this data
            raise InputError(f"{name} cannot be read after {index} rows: {first_line(error)}") from error
        if column not in row:
            raise no_column(name, column, list(row))
        yield checked(row[column], name, index, column)
        index += 1
