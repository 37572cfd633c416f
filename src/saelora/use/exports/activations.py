"""What every latent of a run does on rows of text: how often it fires, and where most strongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelora.models.hookpoints import Hookpoint
from saelora.use.run import LoadedRun

EXAMPLES, BEFORE, AFTER = 10, 24, 16  # texts of a latent; tokens of each, before its strongest one and after
_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Example:
    """Tokens around a latent's strongest activation in a row, from ``start`` of it, with the activation at each."""

    row: int
    start: int
    tokens: list[str]
    values: list[float]


@dataclass
class Activations:
    """The latents of one SAE on rows of token ids.

    Args:
        rows: [n_rows, context].
        n_tokens: positions that the SAE replaces.
        fired: [n, 3], row, position and latent of each activation that is not zero; values: [n].
    """

    loaded: LoadedRun
    rows: Tensor
    d_sae: int
    n_tokens: int
    fired: Any
    values: Any

    @cached_property
    def _bounds(self) -> Any:
        """Where each latent's activations begin in the arrays, which are in order of latents, strongest first."""
        order = np.lexsort((-self.values, self.fired[:, 2]))
        self.fired, self.values = self.fired[order], self.values[order]
        return np.searchsorted(self.fired[:, 2], np.arange(self.d_sae + 1))

    def _of(self, latent: int) -> slice:
        bounds = self._bounds
        return slice(int(bounds[latent]), int(bounds[latent + 1]))

    def density(self, latent: int) -> float:
        """The share of replaced positions at which it fires."""
        part = self._of(latent)
        return float(part.stop - part.start) / max(self.n_tokens, 1)

    def of(self, latent: int) -> Any:
        """Its activations that are not zero, the strongest first."""
        return self.values[self._of(latent)]

    def strongest(self, latent: int, n: int) -> list[tuple[int, int]]:
        """Row and position of its n strongest activations."""
        return [(int(row), int(at)) for row, at, _ in self.fired[self._of(latent)][:n]]

    def firing(self) -> list[int]:
        """The latents that fire somewhere."""
        return [int(each) for each in np.flatnonzero(np.diff(self._bounds))]

    def examples(self, latent: int) -> list[Example]:
        """The rows in which it is strongest, one example a row."""
        part = self._of(latent)
        fired, values = self.fired[part], self.values[part]
        found: list[Example] = []
        for row, peak, _ in fired:
            if len(found) == EXAMPLES:
                break
            if all(example.row != row for example in found):
                found.append(self._around(int(row), int(peak), fired[fired[:, 0] == row], values[fired[:, 0] == row]))
        return found

    def _around(self, row: int, peak: int, fired: Any, values: Any) -> Example:
        start, stop = max(0, peak - BEFORE), min(self.rows.shape[1], peak + AFTER)
        dense = np.zeros(self.rows.shape[1])
        dense[fired[:, 1]] = values
        ids = self.rows[row, start:stop].tolist()
        rounded = [float(f"{value:.5g}") for value in dense[start:stop]]
        return Example(row, start, [self._decoded(i) for i in ids], rounded)

    @cached_property
    def _decoded(self) -> Callable[[int], str]:
        tokenizer = self.loaded.tokenizer
        return cache(lambda i: str(tokenizer.decode([i])))


def collect(loaded: LoadedRun, rows: Tensor) -> dict[Hookpoint, Activations]:
    """Run the current variant on rows [n_rows, context], and keep every activation that is not zero."""
    kept: dict[Hookpoint, list[tuple[Any, Any]]] = {hookpoint: [] for hookpoint in loaded.hookpoints}
    counts = dict.fromkeys(loaded.hookpoints, 0)
    first = 0

    def watch(hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
        there = torch.where(mask.unsqueeze(-1), latents, 0)
        where = there.nonzero()
        values = there[tuple(where.T)].float().cpu().numpy()
        kept[hookpoint].append(((where + where.new_tensor([first, 0, 0])).int().cpu().numpy(), values))
        counts[hookpoint] += int(mask.sum())

    at_once = max(1, _TOKENS_AT_ONCE // rows.shape[1])
    with loaded.watched(watch) as model:
        for first in range(0, len(rows), at_once):
            model(input_ids=rows[first : first + at_once].to(loaded.device))
    return {
        hookpoint: Activations(
            loaded,
            rows,
            loaded.sizes[hookpoint],
            counts[hookpoint],
            np.concatenate([each for each, _ in parts]),
            np.concatenate([each for _, each in parts]),
        )
        for hookpoint, parts in kept.items()
    }
