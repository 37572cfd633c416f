"""What a GGUF file, whole or split, holds: its tensors and its metadata, and one file made of several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saelora.errors import InputError, first_line
from saelora.models.gguf_header import check_header, unreadable
from saelora.records import JsonObject

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFFile:
    """One model's GGUF files: ``metadata`` is the first one's, ``tensors`` all of theirs by name."""

    paths: tuple[Path, ...]
    metadata: JsonObject
    tensors: dict[str, Any]  # gguf.ReaderTensor

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def n_parameters(self) -> int:
        return sum(int(tensor.n_elements) for tensor in self.tensors.values())

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def values(self, name: str) -> np.ndarray:
        """A tensor's values in float32, dequantised."""
        from gguf import dequantize

        tensor = self.tensors[name]
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def shards_of(path: Path) -> tuple[Path, ...]:
    """All files of the model that a .gguf file belongs to by its name, in order; nothing is read.

    Raises:
        InputError: a file of a split model is missing.
    """
    name = _SHARD.fullmatch(path.name)
    if name is None:
        return (path,)
    count = int(name["count"])
    paths = tuple(path.with_name(f"{name['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))
    if path not in paths:
        raise InputError(
            f"{path} is not a file of a split model: expected a number from 00001 to {count:05d} in its name"
        )
    missing = [one.name for one in paths if not one.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path} is one of {count} files of a split model, {missing[0]}{others} missing: put all into one folder"
        )
    return paths


def only_model(files: Sequence[Path]) -> Path | None:
    """The file to give for a folder's .gguf files, where they are one model: one file, or all shards of one."""
    names = [_SHARD.fullmatch(file.name) for file in files]
    if len(files) == 1:
        return files[0]
    if files and all(names) and len({(name["stem"], name["count"]) for name in names if name}) == 1:
        return sorted(files)[0]
    return None


def read_gguf(paths: Sequence[Path]) -> GGUFFile:
    """Open a model's files; no tensor's values are read yet.

    Raises:
        InputError: not readable, for machines of the other byte order, or files that are not of one model.
    """
    first: JsonObject = {}
    tensors: dict[str, Any] = {}
    for i, path in enumerate(paths):
        tensors_here, metadata = _content(path)
        first = first or metadata
        count = metadata.get("split.count") or 1
        if not isinstance(count, int):
            raise InputError(f"{path} states split.count = {str(count)[:40]!r}, expected a number: fetch it again")
        if len(paths) == 1 and count > 1:
            raise InputError(
                f"{path} is one of {count} files of a split model, but its name does not say which: name them as "
                f"published, NAME-00001-of-{count:05d}.gguf to NAME-{count:05d}-of-{count:05d}.gguf"
            )
        if len(paths) > 1 and (metadata.get("split.no"), count) != (i, len(paths)):
            raise InputError(f"{path} is not file {i + 1} of {len(paths)} by its own account: fetch that file again")
        for tensor in tensors_here:
            if tensor.name in tensors:
                raise InputError(f"{path} holds {tensor.name} a second time: the files are not of one model")
            tensors[tensor.name] = tensor
    stated = first.get("split.tensors.count") if len(paths) > 1 else None
    if stated is not None and stated != len(tensors):
        raise InputError(
            f"{paths[0]} and its shards hold {len(tensors)} tensors, not the {stated} that are stated: they are not of "
            f"one model, fetch those of one"
        )
    return GGUFFile(tuple(paths), first, tensors)


def merge(file: GGUFFile, target: Path) -> None:
    """Write a split model as one file, which is all that transformers reads."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    writer = GGUFWriter(target, file.architecture, use_temp_file=False)
    for field in GGUFReader(file.paths[0]).fields.values():
        name = field.name
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
        if name == "general.alignment":
            writer.data_alignment = int(field.contents())
    for tensor in file.tensors.values():
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _content(path: Path) -> tuple[list[Any], JsonObject]:
    """A file's tensors and its metadata."""
    from gguf import GGUFReader

    check_header(path)
    try:
        reader = GGUFReader(path)
        return reader.tensors, _metadata(reader)
    except MemoryError:
        raise
    except Exception as error:  # on a damaged file the reader fails wherever its offsets happen to point
        raise unreadable(path, first_line(error)[:100]) from error


def _metadata(reader: Any) -> JsonObject:
    """Values by key; of lists only those short enough to be settings, others as their length."""
    from gguf import GGUFValueType

    found: JsonObject = {}
    for name, field in reader.fields.items():
        is_list = bool(field.types) and field.types[0] == GGUFValueType.ARRAY
        found[name] = len(field.data) if is_list and name.startswith("tokenizer.") else field.contents()
    return found
