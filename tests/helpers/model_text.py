"""Rows that a tiny random model finds likely, so that harming it costs something, as with real text."""

import torch
from torch import Tensor, nn

from families import BOS, EOS, PAD


@torch.no_grad()
def written_by(model: nn.Module, template: Tensor) -> Tensor:
    """The template [n_rows, context] with its special tokens kept and all others sampled from the model."""
    special = torch.tensor([PAD, BOS, EOS])
    rows, generator = template.clone(), torch.Generator().manual_seed(0)
    for t in range(1, rows.shape[1]):
        p = model(input_ids=rows[:, :t]).logits[:, -1].double().softmax(-1)
        p[:, special] = 0
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        rows[:, t] = torch.where(torch.isin(rows[:, t], special), rows[:, t], drawn)
    return rows
