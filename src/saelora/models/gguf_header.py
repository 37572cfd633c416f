"""The header of a GGUF file, walked within the file's bounds before any reader trusts a length that stands in it."""

import mmap
import struct
from pathlib import Path

from saelora.errors import InputError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_STRING, _LIST = 8, 9
_MOST_DIMENSIONS = 4


class _Damaged(Exception):
    """What is wrong, in words that go into a bracket."""


def check_header(path: Path) -> None:
    """Walk through a GGUF file's metadata and the list of its tensors, none of which is read.

    Raises:
        InputError: it is no GGUF, of a version that is not read, for machines of the other byte order, or a length, a
            type or a tensor's place is outside the file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _walk(path, _Cursor(content))
    except (_Damaged, ValueError) as error:  # ValueError: an empty file cannot be mapped
        said = str(error) if isinstance(error, _Damaged) else "it is empty"
        raise unreadable(path, said) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; choose another file") from error


def unreadable(path: Path, said: str) -> InputError:
    """The error about a file that cannot be read for what ``said`` names."""
    return InputError(f"{path} is not a readable GGUF file: it is damaged or incomplete ({said}), fetch it again")


class _Cursor:
    """A place in the file; whatever reaches beyond its end raises _Damaged."""

    def __init__(self, content: mmap.mmap):
        self.content, self.at, self.size = content, 0, len(content)

    def skip(self, n_bytes: int, what: str) -> int:
        """Where the bytes begin that are passed over."""
        begin = self.at
        if n_bytes > self.size - begin:
            raise _Damaged(f"{what} ends beyond the file")
        self.at += n_bytes
        return begin

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack_from(form, self.content, self.skip(struct.calcsize(form), what))[0])

    def text(self, what: str) -> str:
        length = self.number("<Q", what)
        begin = self.skip(length, what)
        try:
            return self.content[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise _Damaged(f"{what} is no text") from None

    def value(self, kind: int, what: str) -> None:
        if kind == _STRING:
            self.skip(self.number("<Q", what), what)
        elif kind == _LIST:
            self._items(self.number("<I", what), self.number("<Q", what), what)
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind], what)
        else:
            raise _Damaged(f"{what} is of the unknown type {kind}")

    def _items(self, kind: int, count: int, what: str) -> None:
        if kind in _WIDTHS:
            self.skip(count * _WIDTHS[kind], what)
        elif kind == _STRING:
            for _ in range(count):  # each takes some bytes of the file: no count can be longer than that
                self.value(kind, what)
        else:
            raise _Damaged(f"{what} is a list of the type {kind}, which lists cannot be of")


def _walk(path: Path, cursor: _Cursor) -> None:
    if cursor.content[: len(_MAGIC)] != _MAGIC:
        raise _Damaged("it does not begin with GGUF")
    cursor.skip(len(_MAGIC), "the header")
    version = cursor.number("<I", "the header")
    if version & 0xFFFF == 0 and version >> 16:
        raise InputError(f"{path} is a GGUF file of big-endian numbers: convert it with gguf-convert-endian")
    if version not in _VERSIONS:
        raise InputError(f"{path} is a GGUF file of version {version}, expected 2 or 3: fetch a newer one")
    n_tensors, n_keys = cursor.number("<Q", "the header"), cursor.number("<Q", "the header")
    for i in range(n_keys):
        key = cursor.text(f"the name of key {i}")
        cursor.value(cursor.number("<I", key), key)
    for i in range(n_tensors):
        _check_tensor(cursor, cursor.text(f"the name of tensor {i}"))


def _check_tensor(cursor: _Cursor, name: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    n_dimensions = cursor.number("<I", name)
    if n_dimensions > _MOST_DIMENSIONS:
        raise _Damaged(f"{name} has {n_dimensions} dimensions")
    n_values = 1
    for _ in range(n_dimensions):
        n_values *= cursor.number("<Q", name)
    kind, offset = cursor.number("<I", name), cursor.number("<Q", name)
    if kind not in [each.value for each in GGMLQuantizationType]:
        raise _Damaged(f"{name} is of the unknown type {kind}")
    per_block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if offset + n_values * n_bytes // per_block > cursor.size:
        raise _Damaged(f"{name} ends beyond the file")
