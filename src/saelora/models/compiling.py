"""Regional compilation: each decoder layer by itself, so that hooks on layers and the prefix cut stay outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import nn

from saelora.models.anatomy import anatomy_of

VARIANTS = 64  # of one layer: clean, spliced, each adapter, with and without gradient
_GUARDED: WeakSet[nn.Module] = WeakSet()  # bodies whose layers ``compile_layers`` has compiled


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
    anatomy = anatomy_of(model)
    _GUARDED.add(anatomy.body)
    for layer in anatomy.layers:
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=False)


@contextmanager
def hooks_obeyed(body: nn.Module) -> Iterator[None]:
    """Compiled code runs as plain Python while the context is open, unless ``compile_layers`` made it.

    torch.compile takes the hooks of the moment for fixed: what a user compiled, in whole or in part, before hooks came
    would run without them, and what is compiled among them (transformers does so when it generates with a static cache
    on a GPU) would keep them for good.
    """
    if body in _GUARDED:
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield
