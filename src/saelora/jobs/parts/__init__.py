"""The parts of ``saelora evaluate`` beyond the losses: each turns options into a call of its measurement.

A part is a module with ``run(subject, config)``, which returns plain data. Its options, and what can be wrong with them
before anything is loaded, are in ``saelora.jobs.parts.options``, what its result says in words in
``saelora.report.words``, each in a module of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelora.report.words.trained import ADAPTER, BOTH, TRAINED_SAE

if TYPE_CHECKING:  # the command line reads the options of parts: nothing here may import torch
    import torch
    from torch import Tensor, nn

    from saelora.assemble import Assembled
    from saelora.console import Console
    from saelora.core.splice import Splice, TokenMask


@dataclass(frozen=True)
class Subject:
    """An adapted model with its SAEs spliced in, and the held-out rows [n_rows, context] to measure it on."""

    model: nn.Module
    spliced: Splice
    assembled: Assembled
    rows: Tensor
    console: Console
    adapter: str  # the folder of the adapter's run
    adapted: Splice | None = None  # the adapted model's own, where its SAEs were trained

    @property
    def trained(self) -> str:
        """What was trained, in words: whose doing it is that the adapted model differs."""
        from saelora.core import lora

        if self.adapted is None:
            return ADAPTER
        return BOTH if lora.adapter_name(self.model) else TRAINED_SAE

    @property
    def tokenizer(self) -> Any:
        return self.assembled.loaded.tokenizer

    @property
    def token_mask(self) -> TokenMask:
        return self.assembled.token_mask

    @property
    def autocast(self) -> torch.dtype | None:
        from saelora.assemble import autocast_dtype

        return autocast_dtype(self.assembled.loaded)
