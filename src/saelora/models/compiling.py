"""Regional compilation: each decoder layer by itself, so that hooks on layers and the prefix cut stay outside."""

import torch
from torch import nn

from saelora.models.anatomy import anatomy_of

VARIANTS = 64  # of one layer: clean, spliced, each adapter, with and without gradient


def is_compiled(model: nn.Module) -> bool:
    """Whether the layers of a decoder have been through ``compile_layers``."""
    return any(
        "forward" in vars(layer) and hasattr(layer.forward, "_torchdynamo_orig_callable")
        for layer in anatomy_of(model).layers
    )


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the forward pass of every layer of a decoder, in place.

    Compiled code is checked against the hooks inside a layer, which torch by default takes to be fixed: the splice and
    what keeps activations come and go, and stale code would silently run without them.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for layer in anatomy_of(model).layers:
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=False)
