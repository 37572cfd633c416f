"""The variants of one model that an evaluation compares."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from saelora.core import lora
from saelora.core.mode import evaluating
from saelora.core.splice import Splice
from saelora.models.anatomy import device_of

# name -> whether the SAEs are spliced in, and whether the adapter is on
ARMS = {"base": (False, False), "sae": (True, False), "adapted": (True, True), "adapted_clean": (False, True)}


@contextmanager
def arm(
    model: nn.Module,
    spliced: Splice,
    name: str,
    autocast: torch.dtype | None = None,
    *,
    adapted: Splice | None = None,
) -> Iterator[Splice]:
    """The model as one of ARMS, in evaluation mode and without gradient, for as long as this context is open.

    Yields the arm's splice: ``adapted`` where the arm is adapted and has one, else ``spliced``.

    Args:
        spliced: the model's open splice.
        autocast: half precision to run in, as for ``evaluate_loss``.
        adapted: the adapted model's own open splice, where its SAEs were trained.
    """
    with_sae, with_adapter = ARMS[name]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model))
        own = adapted if adapted is not None and with_adapter else spliced
        for each in (spliced,) if adapted is None else (spliced, adapted):
            stack.enter_context(each.switched(with_sae and each is own))
        stack.enter_context(lora.only(model, lora.adapter_name(model) if with_adapter else None))
        if autocast is not None:
            stack.enter_context(torch.autocast(device_of(model).type, autocast))
        yield own
