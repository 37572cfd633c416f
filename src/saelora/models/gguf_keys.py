"""The keys of a GGUF file's architecture, taken one by one: what nobody takes is refused."""

import math
from typing import Any

from saelora.errors import InputError
from saelora.limits import NOT_NEGATIVE, Within
from saelora.models.gguf_file import GGUFFile

_NEUTRAL = ("tensor_data_layout", "rope.scaling.finetuned")
_LARGEST = 2**30  # a size; beyond any model
_NEEDED: Any = object()


class Keys:
    """The architecture's own keys; each is taken once, and what nobody took is an error."""

    def __init__(self, file: GGUFFile):
        self.file = file
        start = file.architecture + "."
        self._left = {k.removeprefix(start): v for k, v in file.metadata.items() if k.startswith(start)}

    def stated(self, key: str) -> Any:
        """A value that may be taken elsewhere; one number where it is the same in each layer."""
        value = self.file.metadata.get(f"{self.file.architecture}.{key}")
        if isinstance(value, list) and value:
            if any(item != value[0] for item in value):
                raise refused(self.file, f"states another {key} for each layer, which is not read here")
            value = value[0]
        return value

    @property
    def head_dim(self) -> int:
        """Of queries and keys; llama.cpp shares d_model between the heads where nothing is stated.

        For who has taken the sizes and the number of heads, which are checked then.
        """
        if self.stated("attention.key_length"):
            return self._whole("attention.key_length", 1, _LARGEST)
        d_model, n_heads = self.stated("embedding_length"), self.stated("attention.head_count")
        if d_model % n_heads:
            raise self.wrong("attention.head_count", n_heads, f"a divisor of its embedding_length, {d_model}")
        return int(d_model // n_heads)

    def take_all(self, key: str) -> Any:
        """The value, layer by layer if that is how it is stated."""
        return self._left.pop(key, None)

    def take(self, key: str, default: Any = None) -> Any:
        """The value, one number where it is the same in each layer; the default where it is not stated."""
        value = self.stated(key)
        return default if self._left.pop(key, None) is None else value

    def whole(self, key: str, default: Any = _NEEDED, *, least: int = 1, most: int = _LARGEST) -> Any:
        """A whole number within bounds; the default where it is not stated."""
        return default if self._absent(key, default) else self._whole(key, least, most)

    def number(self, key: str, default: Any = _NEEDED, limit: Within = NOT_NEGATIVE) -> Any:
        """A finite number within its limit; the default where it is not stated."""
        if self._absent(key, default):
            return default
        value = self.stated(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or limit(value):
            raise self.wrong(key, value, f"a number that is {limit.expected().removeprefix('a number ')}")
        return float(value)

    def _absent(self, key: str, default: Any) -> bool:
        absent = self.take(key) is None
        if absent and default is _NEEDED:
            raise refused(self.file, f"does not state {self.file.architecture}.{key}")
        return absent

    def _whole(self, key: str, least: int, most: int) -> int:
        value = self.stated(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, value, f"a whole number from {least:,} to {most:,}")
        return value

    def expect(self, key: str, neutral: Any) -> None:
        """Refuse a setting that transformers' model does not have, unless it says what is done without it."""
        value = self.take(key, neutral)
        near = isinstance(neutral, float) and isinstance(value, int | float)
        if value != neutral and not (near and math.isclose(value, neutral, rel_tol=1e-5)):
            raise self.unread(key, value)

    def check_rest(self) -> None:
        """Refuse keys that nobody took; zero, false and nothing switch off whatever it is."""
        for key, value in self._left.items():
            if key not in _NEUTRAL and value not in (0, False, "", []):
                raise self.unread(key, value)

    def unread(self, key: str, value: Any) -> InputError:
        """The error that a setting changes what no model here does."""
        return refused(self.file, f"states {self.file.architecture}.{key} = {short(value)}, which is not read here")

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        """The error that a value cannot be meant."""
        return refused(self.file, f"states {self.file.architecture}.{key} = {short(repr(value))}, expected {expected}")


def short(value: Any) -> str:
    """A stated value for a message: one line of at most 40 characters."""
    text = " ".join(str(value).split())
    return text if len(text) < 40 else text[:40] + "..."


def refused(file: GGUFFile, why: str) -> InputError:
    """The error that a file is not understood whole."""
    return InputError(f"{file.paths[0]} {why}: give the model's Hugging Face folder instead")
