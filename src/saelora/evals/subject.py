"""What an evaluation beyond the losses is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelora.core import lora
from saelora.evals.spliced import SplicedModel
from saelora.evals.trained import Trained

if TYPE_CHECKING:
    from torch import Tensor

    from saelora.console import Console
    from saelora.data.corpus import Corpus
    from saelora.models.hookpoints import Hookpoint
    from saelora.models.loading import LoadedModel
    from saelora.options import DataConfig
    from saelora.saes.loading import LoadedSAE


@dataclass(frozen=True, kw_only=True)
class Subject(SplicedModel):
    """An adapted model with its SAEs spliced in, and the held-out rows [n_rows, context] to measure it on.

    Args:
        loaded: the model as it was loaded, with its tokenizer.
        saes: as they were loaded, by hookpoint.
        data: the options of what text is read, and how.
        corpus: opens it.
        training_rows: rows [n_rows, context] of the data's training part, of about so many tokens.
        adapter: the folder of the adapter's run.
    """

    loaded: LoadedModel
    saes: Mapping[Hookpoint, LoadedSAE]
    rows: Tensor
    data: DataConfig
    corpus: Callable[[], Corpus]
    training_rows: Callable[[int], Tensor]
    console: Console
    adapter: str

    @property
    def trained(self) -> Trained:
        """What was trained: whose doing it is that the adapted model differs."""
        if self.adapted is None:
            return Trained.ADAPTER
        return Trained.BOTH if lora.adapter_name(self.model) else Trained.SAE

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer
