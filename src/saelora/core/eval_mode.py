"""Evaluation mode that restores what it found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from saelora.models.anatomy import device_of


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the context is open; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Evaluation mode without gradient, in half precision where ``autocast`` names one, while the context is open."""
    half = torch.autocast(device_of(model).type, autocast, enabled=autocast is not None)
    with torch.no_grad(), eval_mode(model), half:
        yield
