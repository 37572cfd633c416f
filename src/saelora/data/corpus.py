"""Where text comes from: local files, folders and hub datasets, all read as documents in one canonical order."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader, TextIOWrapper
from pathlib import Path

from saelora.data.hub import open_hub
from saelora.data.tables import TABLES, read_column
from saelora.errors import InputError
from saelora.models.assets import resolve_asset

SUFFIXES = (".txt", *TABLES)
FINGERPRINT_BYTES = 1 << 30  # above this size, reading every byte once more just to name the corpus costs too much
_EXPECTED = f"a file ending in {', '.join(SUFFIXES)}, a folder of these, or the name of a hub dataset"


@dataclass(frozen=True)
class Document:
    """One text, and where it came from (file name, or file name and row) for messages."""

    text: str
    source: str


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read from the start any number of times, in the same order each time.

    name: as the user gave it.  revision: the commit of a hub dataset.
    fingerprint: sha256 of the names and contents of local files; None where that is not cheap.
    """

    name: str
    read: Callable[[], Iterator[Document]] = field(repr=False, compare=False)
    revision: str | None = None
    fingerprint: str | None = None

    def documents(self) -> Iterator[Document]:
        """The documents in canonical order; local files are sorted by path, texts without content are left out."""
        return (document for document in self.read() if document.text.strip())

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def describe(self) -> dict[str, str | None]:
        """What identifies this corpus, for manifests."""
        return {"name": self.name, "revision": self.revision, "fingerprint": self.fingerprint}


def open_corpus(
    data: str,
    *,
    split: str = "train",
    subset: str | None = None,
    text_column: str = "text",
    revision: str | None = None,
    fingerprint: bool = True,
) -> Corpus:
    """Open a text file, a jsonl or parquet file, a folder of any of these, or a hub dataset (streamed).

    The first document is read at once, so that a corpus that opens is one that can be read.

    Args:
        data: path, hub dataset name, or the short name of the default text.
        split, subset, revision: of a hub dataset only.
        text_column: the column of jsonl, parquet and hub rows that holds the text; no other is read.
        fingerprint: hash local files, which takes a second for a few hundred megabytes.

    Raises:
        InputError: nothing readable is there, or the rows have no such column.
    """
    path = Path(resolve_asset(data)).expanduser()
    if path.exists():
        if split != "train" or subset is not None or revision is not None:
            raise InputError(f"{data} is local: split, subset and revision are for hub datasets only, leave them out")
        files = _local_files(path, data)
        digest = _fingerprint(path, files) if fingerprint else None
        corpus = Corpus(data, partial(_read_files, path, files, text_column), None, digest)
    elif _looks_like_a_path(data):
        raise InputError(f"{data} does not exist: expected {_EXPECTED}")
    else:
        hub = open_hub(data, split, subset, revision)
        corpus = Corpus(data, partial(_documents, hub.read, data, text_column), hub.commit)
    if next(corpus.documents(), None) is None:
        raise InputError(f"{data} holds no text: expected {_EXPECTED}, with at least one document that is not empty")
    return corpus


def _looks_like_a_path(data: str) -> bool:
    return data.startswith((".", "/", "~")) or data.endswith((*SUFFIXES, "/")) or data.count("/") > 1 or "\\" in data


def _local_files(path: Path, data: str) -> list[Path]:
    """The readable files under a path, sorted by their path relative to it."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{data} is not a kind of file that can be read: expected {_EXPECTED}")
        return [path]
    found = (file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
    visible = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not visible:
        raise InputError(
            f"folder {data} holds no file that can be read: expected files ending in {', '.join(SUFFIXES)}"
        )
    return sorted(visible, key=lambda file: file.relative_to(path).as_posix())


def _label(root: Path, file: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()


def _fingerprint(root: Path, files: list[Path]) -> str | None:
    if sum(file.stat().st_size for file in files) > FINGERPRINT_BYTES:
        return None
    digest = hashlib.sha256()
    for file in files:
        with _opened(file) as handle:
            digest.update(f"{_label(root, file)}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _read_files(root: Path, files: list[Path], text_column: str) -> Iterator[Document]:
    for file in files:
        label = _label(root, file)
        with _opened(file) as opened:
            if file.suffix == ".txt":
                yield Document(_text(opened, file), label)
            elif opened.peek(1):  # an empty file has no columns
                yield from _documents(partial(read_column, opened, label), label, text_column)


def _documents(read: Callable[[str], Iterator[str | None]], label: str, text_column: str) -> Iterator[Document]:
    return (Document(text, f"{label}:{index}") for index, text in enumerate(read(text_column)) if text)


def _opened(file: Path) -> BufferedReader:
    try:
        return file.open("rb")
    except OSError as error:
        raise InputError(f"{file} cannot be opened: {error.strerror}; check its permissions") from error


def _text(opened: BufferedReader, file: Path) -> str:
    try:
        return TextIOWrapper(opened, encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text (byte {error.start} cannot be decoded): convert it, for example with iconv"
        ) from error
