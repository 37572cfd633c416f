"""The anatomy of a decoder that no table knows: found by running it once, and proven by its own numbers.

A few tokens are run while every module inside the layers is watched. Each layer's output must be the next one's input.
Of the modules in a layer, those two are its sublayers whose outputs add up, with the layer's input, to its output; a
norm between one of them and the stream, and the linear module that makes an attention's output, are found the same way.
What does not add up is not guessed: its sites are refused, by name.

Shapes: S tokens, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from saelora.errors import InputError, on_one_line
from saelora.models.layout import Layout, is_linear

TOKENS = 6
_ROUNDINGS = 16  # of the largest value, that a sum may be off


@dataclass
class _Seen:
    """One module's call: what it was given and what it returned, where that is [1, S, D]."""

    name: str  # inside the layer
    module: nn.Module
    given: Tensor | None
    output: Tensor | None
    one_tensor: bool  # whether it returned a tensor, of any shape, and nothing beside it


@dataclass
class _Trace:
    """One layer's pass."""

    given: list[Tensor] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)
    in_tuple: bool = False  # whether the output stands in a tuple
    calls: list[_Seen] = field(default_factory=list)  # in the order in which they ended


def layouts(body: nn.Module, layers: Sequence[nn.Module], d_vocab: int, what: str) -> tuple[Layout, ...]:
    """Each layer's sublayers, as one run of the body tells them.

    The second of the two that ran is the MLP, if it acts on each token alone; else neither has a name.

    Args:
        body: takes ``input_ids`` and runs embeddings, layers and final norm; bare, in evaluation mode.
        layers: those of its text tower, in their order.
        d_vocab: how many tokens it knows.
        what: the model, for messages.

    Raises:
        InputError: layers that are not run one after the other, each on the output of the one before.
    """
    traces = _run(body, layers, torch.arange(5, 5 + TOKENS) % d_vocab, what)
    for i, trace in enumerate(traces):
        if not trace.output:
            raise InputError(
                f"{what} cannot be taken apart: layer {i} does not take and return one stream of hidden states [batch, "
                "tokens, d_model]"
            )
        if len(trace.output) > 1:
            raise InputError(f"{what} cannot be taken apart: layer {i} ran {len(trace.output)} times in one pass")
        if i and not torch.equal(traces[i - 1].output[0], trace.given[0]):
            raise InputError(
                f"{what} cannot be taken apart: layer {i} does not take the output of layer {i - 1} as it is"
            )
    return tuple(replace(_layout(trace), in_tuple=trace.in_tuple) for trace in traces)


def layer_list(stack: nn.Module, n_layers: int, what: str) -> str:
    """The name of the stack's attribute that holds its layers.

    Raises:
        InputError: there is none of ``n_layers`` modules, or more than one.
    """
    found = [
        name for name, child in stack.named_children() if isinstance(child, nn.ModuleList) if len(child) == n_layers
    ]
    if len(found) != 1:
        raise InputError(
            f"{what} cannot be taken apart: expected one list of its {n_layers} layers in {type(stack).__name__}, "
            f"found {', '.join(found) or 'none'}"
        )
    return found[0]


def _run(body: nn.Module, layers: Sequence[nn.Module], ids_S: Tensor, what: str) -> list[_Trace]:
    device = next((p.device for p in body.parameters() if p.device.type != "meta"), torch.device("cpu"))
    traces = [_Trace() for _ in layers]
    with torch.no_grad(), _watched(layers, traces):
        try:
            body(input_ids=ids_S[None].to(device), use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise InputError(f"{what} cannot be run on {len(ids_S)} tokens alone ({on_one_line(error)})") from error
    return traces


@contextmanager
def _watched(layers: Sequence[nn.Module], traces: list[_Trace]) -> Iterator[None]:
    """While the context is open, every call of a layer and of the modules inside it goes into its trace."""
    handles = []
    for layer, trace in zip(layers, traces, strict=True):

        def on_layer(_m: nn.Module, args: Any, kwargs: Any, output: Any, trace: _Trace = trace) -> None:
            hidden, made = _hidden(args, kwargs), _tensor(output)
            if hidden is not None and made is not None and made.shape == hidden.shape:
                trace.given.append(hidden)
                trace.output.append(made)
                trace.in_tuple = isinstance(output, tuple)

        handles.append(layer.register_forward_hook(on_layer, with_kwargs=True))
        for name, module in layer.named_modules():
            if name and not name.endswith("base_layer"):

                def on_module(
                    m: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name, trace: _Trace = trace
                ) -> None:
                    trace.calls.append(
                        _Seen(name, m, _hidden(args, kwargs), _tensor(output), isinstance(output, Tensor))
                    )

                handles.append(module.register_forward_hook(on_module, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
    return given if isinstance(given, Tensor) and given.dim() == 3 else None


def _tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.dim() == 3 else None


def _layout(trace: _Trace) -> Layout:
    (given,), (output,) = trace.given, trace.output
    linears = _linears(trace)
    parts = [c for c in trace.calls if c.output is not None and c.output.shape == given.shape and not _idle(c)]
    pair = _summands(given, output, _outermost(parts))
    if pair is None:
        why = "no two of its modules' outputs, added to the residual stream as they are, make the layer's output"
        return Layout(mlp=None, linears=linears, refused=why)
    (attn, attn_norm), (mlp, mlp_norm) = (_behind(each, parts) for each in pair)
    if not _by_token(mlp):
        return Layout(mlp=None, linears=linears, refused="neither of its two sublayers acts on each token alone")
    return Layout(
        attn=attn.name,
        attn_proj=attn.name if _is_linear(attn.module) else _projection(attn, trace.calls),
        mlp=mlp.name,
        attn_norm=attn_norm,
        mlp_norm=mlp_norm,
        mlp_reads=_norm_before(mlp, trace.calls),
        linears=linears,
    )


def _idle(call: _Seen) -> bool:
    """Whether a module hands on what it was given: dropout in evaluation mode, an identity."""
    return (
        call.given is not None
        and call.output is not None
        and call.given.shape == call.output.shape
        and (torch.equal(call.given, call.output))
    )


def _outermost(calls: list[_Seen]) -> list[_Seen]:
    """Of modules that return the same values, that which holds the others."""
    return [
        call
        for call in calls
        if not any(call.name.startswith(f"{other.name}.") and _same(call.output, other.output) for other in calls)
    ]


def _summands(given: Tensor, output: Tensor, parts: list[_Seen]) -> tuple[_Seen, _Seen] | None:
    """The layer's two sublayers in the order in which they ran; None where no two add up, or several do."""
    allowed = _ROUNDINGS * torch.finfo(output.dtype).eps * output.abs().max().item()
    wide = torch.promote_types(output.dtype, torch.float32)

    def adds_up(*calls: _Seen) -> bool:
        total = given.to(wide)
        for call in calls:
            total = total + _made(call).to(wide)
        return (total - output.to(wide)).abs().max().item() <= allowed

    found = [pair for pair in combinations(parts, 2) if not _nested(*pair) and adds_up(*pair)]
    return found[0] if len(found) == 1 and not any(map(adds_up, found[0])) else None


def _made(call: _Seen) -> Tensor:
    assert call.output is not None
    return call.output


@torch.no_grad()
def _by_token(call: _Seen) -> bool:
    """Whether a module makes of the last token alone what it made of it among the others, as an MLP does."""
    if call.given is None:
        return False
    try:
        alone = _tensor(call.module(call.given[:, -1:]))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):  # it takes more than a token
        return False
    if alone is None or alone.shape != _made(call)[:, -1:].shape:
        return False
    allowed = _ROUNDINGS * torch.finfo(alone.dtype).eps * _made(call).abs().max().item()
    return (alone - _made(call)[:, -1:]).abs().max().item() <= allowed


def _nested(a: _Seen, b: _Seen) -> bool:
    return a.name.startswith(f"{b.name}.") or b.name.startswith(f"{a.name}.")


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def _behind(summand: _Seen, parts: list[_Seen]) -> tuple[_Seen, str | None]:
    """The sublayer itself, and the norm between it and the stream, where what is added comes from a norm."""
    if any(p.dim() > 1 for p in summand.module.parameters()):
        return summand, None
    made = [call for call in _outermost(parts) if call is not summand and _same(call.output, summand.given)]
    return (made[0], summand.name) if made else (summand, None)


def _norm_before(mlp: _Seen, calls: list[_Seen]) -> str | None:
    """The norm whose output the MLP is given: a module of vectors alone."""
    norms = [call for call in calls if call is not mlp and all(p.dim() < 2 for p in call.module.parameters())]
    made = [call.name for call in norms if not _idle(call) and _same(call.output, mlp.given)]
    return made[0] if len(made) == 1 else None


def _projection(attn: _Seen, calls: list[_Seen]) -> str | None:
    """The linear module inside an attention whose output is the attention's own."""
    inside = [call for call in calls if call.name.startswith(f"{attn.name}.") and _is_linear(call.module)]
    last = [call.name for call in inside if _same(call.output, attn.output)]
    return last[-1] if last else None


def _is_linear(module: nn.Module) -> bool:
    return is_linear(getattr(module, "base_layer", module))


def _linears(trace: _Trace) -> tuple[str, ...]:
    """The linear modules that are called and return their product: only there can an adapter act.

    Not a Mamba's last one: its fused kernels, on a GPU, read that weight themselves.
    """
    module_of = {call.name: call.module for call in trace.calls}
    found = set()
    for call in trace.calls:
        parent, _, leaf = call.name.rpartition(".")
        mamba = all(hasattr(module_of.get(parent), weight) for weight in ("A_log", "D"))
        if call.one_tensor and _is_linear(call.module) and not (mamba and leaf == "out_proj"):
            found.add(call.name)
    return tuple(sorted(found))
