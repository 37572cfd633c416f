"""Run a decoder as prefix + suffix: below the lowest splice and the lowest adapter, teacher and student agree.

The list of layers is swapped for one of the same length (layers to pass over, then a stand-in that returns a
stored activation, then the true layers), so masks, rotary state and per-layer attention types keep their
indices in every family.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import transformers.masking_utils
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from saelora.models.anatomy import Anatomy, anatomy_of
from saelora.models.compiling import hooks_obeyed
from saelora.models.hookpoints import Hookpoint, ReadPoint

P = TypeVar("P", bound=Hookpoint | ReadPoint)

NO_PREFIX = -1


class _StandIn(nn.Module):
    """Takes a layer's place in the list, and answers for it when asked for attributes such as its attention type."""

    sites: frozenset[str] = frozenset()  # of the layer's, those that are passed through all the same

    def __init__(self, layer: nn.Module, in_tuple: bool):
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # not registered: it must not appear as a child
        object.__setattr__(self, "_in_tuple", in_tuple)

    def _as_layer(self, hidden: Tensor) -> Any:
        return (hidden,) if object.__getattribute__(self, "_in_tuple") else hidden

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)


class _PassOver(_StandIn):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._as_layer(hidden_states)


class _Enter(_StandIn):
    """Returns the stored output of its layer; what hooks the layer's output (a splice) sees it too."""

    sites = frozenset({"resid_post"})

    def __init__(self, layer: nn.Module, in_tuple: bool, stored: Tensor):
        super().__init__(layer, in_tuple)
        object.__setattr__(self, "_stored", stored)
        for hooks in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            object.__setattr__(self, hooks, getattr(layer, hooks))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._as_layer(object.__getattribute__(self, "_stored"))


def is_partial(anatomy: Anatomy) -> bool:
    """Whether the pass that is under way runs the model in part."""
    return any(isinstance(layer, _StandIn) for layer in anatomy.layers)


def runs(anatomy: Anatomy, hookpoint: Hookpoint) -> bool:
    """Whether the pass that is under way goes through a hookpoint, or a stand-in keeps it out."""
    layer = anatomy.layers[hookpoint.layer]
    return not isinstance(layer, _StandIn) or hookpoint.site in layer.sites


@contextmanager
def _layers(anatomy: Anatomy, layers: Iterable[nn.Module]) -> Iterator[None]:
    true_layers = anatomy.layers
    setattr(anatomy.stack, anatomy.layers_name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(anatomy.stack, anatomy.layers_name, true_layers)


def _from(anatomy: Anatomy, entry: int, stored: Tensor | None, top: int) -> list[nn.Module]:
    """Layers that enter at ``entry`` with its stored output and pass over all above ``top``."""
    layers = list(anatomy.layers)
    over = [_PassOver(layer, layout.in_tuple) for layer, layout in zip(layers, anatomy.layouts, strict=True)]
    above = [*layers[entry + 1 : top + 1], *over[top + 1 :]]
    if entry == NO_PREFIX:
        return above
    assert stored is not None
    return [*over[:entry], _Enter(layers[entry], anatomy.layouts[entry].in_tuple, stored), *above]


@contextmanager
def cache_outputs(
    anatomy: Anatomy, kept: dict[int, Float[Tensor, "batch seq d_model"]], entries: Iterable[int]
) -> Iterator[None]:
    """While the context is open, put the named layers' outputs into ``kept``, as they are before a splice acts on them.

    Outputs of ``clean_forward`` come without gradient, those of ``run_from`` with it.
    """

    def keep(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[index] = output if isinstance(output, Tensor) else output[0]

        return hook

    layers = anatomy.layers
    handles = [layers[i].register_forward_hook(keep(i), prepend=True) for i in set(entries) if i != NO_PREFIX]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entry_layer(hookpoints: Iterable[Hookpoint], adapted_layers: Iterable[int] = ()) -> int:
    """The highest layer whose output no splice and no adapter can have changed yet, or NO_PREFIX.

    A splice at a layer's resid_post acts on that output, so the layer itself still belongs to the prefix.
    """
    splices = [h.layer if h.site == "resid_post" else h.layer - 1 for h in hookpoints]
    return min([*splices, *(layer - 1 for layer in adapted_layers)], default=NO_PREFIX)


@dataclass(frozen=True)
class CleanPass:
    """What one pass of the clean model leaves."""

    hidden: Float[Tensor, "batch seq d_model"]  # after the final norm
    entries: dict[int, Float[Tensor, "batch seq d_model"]]  # layer -> its output
    seen: dict[Any, Float[Tensor, "batch seq _"]] = field(default_factory=dict)  # activations at points asked for


def clean_forward(
    model: nn.Module,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Shaped[Tensor, "batch seq"] | None = None,
    entries: Sequence[int] = (),
    points: Iterable[Hookpoint | ReadPoint] = (),
) -> CleanPass:
    """Run the model as it is, keep its final hidden states, the outputs of the named layers, activations at points.

    Without gradient. The caller disables splice and adapter (see ``saelora.core.lora.disabled``).
    """
    anatomy = anatomy_of(model)
    kept: dict[int, Tensor] = {}
    seen: dict[Any, Tensor] = {}
    with torch.no_grad(), cache_outputs(anatomy, kept, entries), capturing(anatomy, list(points), seen):
        hidden = _run(anatomy, input_ids, attention_mask)
    return CleanPass(hidden, kept, seen)


@torch.no_grad()
def shared_stem(
    model: nn.Module,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Shaped[Tensor, "batch seq"] | None,
    entry: int,
    stored: Float[Tensor, "batch seq d_model"] | None,
    entries: Sequence[int],
) -> dict[int, Float[Tensor, "batch seq d_model"]]:
    """Outputs of the layers ``entries``, all above ``entry``, from that layer's stored output; nothing above is run.

    Splices act between, and not yet on the outputs: what enters there (``run_from``) passes through the splice again.
    With the adapters off this is what students of one splice share below their lowest adapted layers.
    """
    anatomy, top = anatomy_of(model), max(entries)
    kept: dict[int, Tensor] = {}
    with _layers(anatomy, _from(anatomy, entry, stored, top)), cache_outputs(anatomy, kept, entries):
        _run(anatomy, input_ids, attention_mask)
    return kept


def run_from(
    model: nn.Module,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Shaped[Tensor, "batch seq"] | None,
    entry: int,
    stored: Float[Tensor, "batch seq d_model"] | None,
) -> Float[Tensor, "batch seq d_model"]:
    """Run the suffix: the layers above ``entry``, from that layer's stored output.

    With entry NO_PREFIX the whole model runs. Splices and adapters act as they would in a full forward.

    Returns:
        Final hidden states [batch, seq, d_model], after the final norm; equal to a full forward's.
    """
    anatomy = anatomy_of(model)
    with _layers(anatomy, _from(anatomy, entry, stored, anatomy.n_layers)):
        return _run(anatomy, input_ids, attention_mask)


@contextmanager
def capturing(anatomy: Anatomy, points: Sequence[P], found: dict[P, Float[Tensor, "batch seq _"]]) -> Iterator[None]:
    """While the context is open, put the activations at hookpoints into ``found``, as they come to a splice there, and
    what transcoders read."""
    handles = []
    for point in points:

        def keep(x: Tensor, point: P = point) -> None:
            found[point] = x

        if isinstance(point, ReadPoint):
            handles.append(keep_read(anatomy, point, keep))
        else:
            handles.append(_keep(anatomy, point, keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(anatomy: Anatomy, hookpoint: Hookpoint, keep: Callable[[Tensor], None]) -> Any:
    module, side = anatomy.site(hookpoint)

    def on_output(_m: nn.Module, _a: Any, output: Any) -> None:
        keep(output if isinstance(output, Tensor) else output[0])

    def on_input(_m: nn.Module, args: Any, kwargs: Any) -> None:
        keep(first_input(args, kwargs))

    if side == "input":
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def keep_read(anatomy: Anatomy, point: ReadPoint, keep: Callable[[Float[Tensor, "batch seq d"]], None]) -> Any:
    """A hook that calls keep(x) with what a transcoder reads, [batch, seq, d]."""
    module, rule = anatomy.reading(point)

    def on_input(_m: nn.Module, args: Any, kwargs: Any) -> None:
        x = first_input(args, kwargs)
        keep(x if rule is None else rule(x))

    return module.register_forward_pre_hook(on_input, with_kwargs=True)


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Float[Tensor, "*batch d"]:
    """The hidden states that a module is called with."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["x"]
    return hidden


@torch.no_grad()
def activations(
    model: nn.Module,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Shaped[Tensor, "batch seq"] | None,
    points: Sequence[P],
) -> dict[P, Float[Tensor, "batch seq _"]]:
    """Clean activations [batch, seq, d] at hookpoints; layers above the highest one are not run."""
    anatomy = anatomy_of(model)
    found: dict[Any, Tensor] = {}
    top = max(point.layer for point in points)
    with capturing(anatomy, points, found), _layers(anatomy, _from(anatomy, NO_PREFIX, None, top)):
        _run(anatomy, input_ids, attention_mask)
    return found


@contextmanager
def _one_text_a_row(input_ids: Tensor, attention_mask: Tensor | None) -> Iterator[None]:
    """On a GPU keep transformers from looking whether the position ids that it makes itself begin anew inside a row.

    It waits for the GPU to see that they do not, and while a graph is recorded it takes for granted that they do, and
    forms a mask where attention would be causal without one.
    """
    asked = getattr(transformers.masking_utils, "find_packed_sequence_indices", None)
    if asked is None or attention_mask is not None or input_ids.device.type != "cuda":
        yield
        return
    transformers.masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        transformers.masking_utils.find_packed_sequence_indices = asked


def _run(anatomy: Anatomy, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    with hooks_obeyed(anatomy.body), _one_text_a_row(input_ids, attention_mask):
        out = anatomy.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden
