"""What an evaluation beyond the losses is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelora.evals.trained import Trained

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from saelora.console import Console
    from saelora.core.splice import Splice, TokenMask
    from saelora.data.corpus import Corpus
    from saelora.models.hookpoints import Hookpoint
    from saelora.models.loading import LoadedModel
    from saelora.options import DataConfig
    from saelora.saes.loading import LoadedSAE


@dataclass(frozen=True)
class Subject:
    """An adapted model with its SAEs spliced in, and the held-out rows [n_rows, context] to measure it on.

    Args:
        loaded: the model as it was loaded, with its tokenizer.
        saes: as they were loaded, by hookpoint.
        autocast: half precision to run in; None where the model is in float32.
        data: the options of what text is read, and how.
        corpus: opens it.
        training_rows: rows [n_rows, context] of the data's training part, of about so many tokens.
        adapter: the folder of the adapter's run.
        adapted: the adapted model's own open splice, where its SAEs were trained.
    """

    model: nn.Module
    spliced: Splice
    loaded: LoadedModel
    saes: Mapping[Hookpoint, LoadedSAE]
    token_mask: TokenMask
    rows: Tensor
    autocast: torch.dtype | None
    data: DataConfig
    corpus: Callable[[], Corpus]
    training_rows: Callable[[int], Tensor]
    console: Console
    adapter: str
    adapted: Splice | None = None

    @property
    def trained(self) -> Trained:
        """What was trained: whose doing it is that the adapted model differs."""
        from saelora.core import lora

        if self.adapted is None:
            return Trained.ADAPTER
        return Trained.BOTH if lora.adapter_name(self.model) else Trained.SAE

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer
