"""Rows of a corpus that is read as training goes on."""

from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor


class StreamedRows:
    """Rows of a corpus as a sequence that is read forwards; after a resume the rows before are passed over."""

    def __init__(self, rows: Iterator[Int[Tensor, " context"]], n_rows: int):
        self._rows, self._n_rows, self._next = rows, n_rows, 0

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, index: slice, /) -> Int[Tensor, "n_rows context"]:
        start, stop, _ = index.indices(self._n_rows)
        for _ in islice(self._rows, start - self._next):
            pass
        self._next = stop
        return torch.stack(list(islice(self._rows, stop - start)))
