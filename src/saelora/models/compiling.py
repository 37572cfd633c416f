"""Regional compilation: each decoder layer by itself, so that hooks on layers and the prefix cut stay outside."""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakSet

import torch
from torch import nn

from saelora.models.anatomy import anatomy_of

VARIANTS = 64  # of one layer: clean, spliced, each adapter, with and without gradient
WORTHWHILE = (
    2e16  # operations of a training: what compiling takes (20 s and more) is won back twice (gpu.py, on an H100)
)
_GUARDED: WeakSet[nn.Module] = WeakSet()  # bodies whose layers ``compile_layers`` has compiled
_HOLDERS: list[object] = []  # contexts that hold compiled code back, left in any order: the last one lets it go
_HELD = ExitStack()


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
    CompiledLayers(model, backend).put_in()


class CompiledLayers:
    """Compiled forward passes of a decoder's layers, to be put in their places for good or for a while."""

    def __init__(self, model: nn.Module, backend: str = "inductor"):
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        anatomy = anatomy_of(model)
        self._body = anatomy.body
        self._forwards = [
            (layer, torch.compile(layer.forward, backend=backend, dynamic=False)) for layer in anatomy.layers
        ]

    def put_in(self) -> None:
        _GUARDED.add(self._body)
        for layer, forward in self._forwards:
            layer.forward = forward

    @contextmanager
    def used(self) -> Iterator[None]:
        """The layers run compiled while the context is open, and as they are afterwards."""
        self.put_in()
        try:
            with torch.compiler.set_stance("default"):  # a splice that is open holds compiled code back
                yield
        finally:
            _GUARDED.discard(self._body)
            for layer, _ in self._forwards:
                del layer.forward


def compiling_pays(model: nn.Module, device: torch.device, n_tokens: int) -> bool:
    """Whether a training on so many tokens is long enough for its steps to be compiled, and they can be.

    Counted as 8 operations a weight and token: the teacher's pass, and about half of the student's, forward and back.
    """
    anatomy = anatomy_of(model)
    as_they_are = all("forward" not in vars(layer) for layer in anatomy.layers)
    as_they_are &= not any(getattr(module, "_compiled_call_impl", None) for module in model.modules())
    can_be = device.type == "cuda" and as_they_are and importlib.util.find_spec("triton") is not None
    return can_be and 8 * sum(p.numel() for p in anatomy.body.parameters()) * n_tokens >= WORTHWHILE


@contextmanager
def hooks_obeyed(body: nn.Module) -> Iterator[None]:
    """Compiled code runs as plain Python while the context is open, unless ``compile_layers`` made it.

    torch.compile takes the hooks of the moment for fixed: what a user compiled, in whole or in part, before hooks came
    would run without them, and what is compiled among them (transformers does so when it generates with a static cache
    on a GPU) would keep them for good.
    """
    if body in _GUARDED:
        yield
        return
    _HOLDERS.append(object())
    if len(_HOLDERS) == 1:
        _HELD.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        _HOLDERS.pop()
        if not _HOLDERS:
            _HELD.close()
