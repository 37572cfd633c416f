"""One model as each of its variants."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from saelora.core import lora
from saelora.core.eval_mode import eval_mode
from saelora.core.splice import Splice
from saelora.evals.variant import Variant
from saelora.models.anatomy import device_of


@contextmanager
def as_variant(
    model: nn.Module,
    spliced: Splice,
    variant: Variant,
    autocast: torch.dtype | None = None,
    *,
    adapted: Splice | None = None,
) -> Iterator[Splice]:
    """The model as base, spliced, adapted or adapted_clean, for as long as this context is open.

    In evaluation mode and without gradient.

    Yields the variant's splice: ``adapted`` where it has the adapter and one is given, else ``spliced``.

    Args:
        spliced: the model's open splice.
        autocast: half precision to run in, as for ``evaluate_loss``.
        adapted: the adapted model's own open splice, where its SAEs were trained.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(eval_mode(model))
        own = adapted if adapted is not None and variant.has_adapter else spliced
        for each in (spliced,) if adapted is None else (spliced, adapted):
            stack.enter_context(each.switched(variant.has_saes and each is own))
        stack.enter_context(lora.only(model, lora.adapter_name(model) if variant.has_adapter else None))
        if autocast is not None:
            stack.enter_context(torch.autocast(device_of(model).type, autocast))
        yield own
