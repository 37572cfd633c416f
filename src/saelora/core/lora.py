"""Placement rules -> PEFT configuration, and the switch between teacher and student."""

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from saelora.errors import InputError
from saelora.models.anatomy import Anatomy, anatomy_of, unwrap
from saelora.models.hookpoints import Hookpoint

Adapter = str | tuple[str, ...] | None
"""An adapter by its name, several that are active together, or none."""

# PEFT's others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights, so that the model with its adapter
# off is no longer the teacher.
_SAFE_INIT = ("default", "gaussian", "orthogonal")


def layers_of(placement: str, hookpoints: Iterable[Hookpoint], n_layers: int) -> list[int]:
    """The layers that a placement adapts.

    ``after``: every layer that lies wholly above the lowest SAE; ``all``; ``layers:13,14`` or ``layers:13-20``.

    Raises:
        InputError: unknown placement, a layer out of range, or nothing left to adapt.
    """
    if placement == "all":
        return list(range(n_layers))
    if placement == "after":
        first = min(h.layer if h.site == "resid_pre" else h.layer + 1 for h in hookpoints)
        if first >= n_layers:
            raise InputError(f"placement 'after' is empty: layer {first - 1} is the last one; use --placement all")
        return list(range(first, n_layers))
    if not placement.startswith("layers:"):
        raise InputError(f"placement {placement!r} is not known: expected after, all, or layers:13,14 (layers:13-20)")
    layers: set[int] = set()
    for part in placement.removeprefix("layers:").split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise InputError(f"placement {placement!r}: {part!r} is no layer; expected numbers as in layers:13,14-20")
        layers.update(range(low, high + 1))
    if outside := sorted(i for i in layers if i >= n_layers):
        raise InputError(f"placement {placement!r} names layer {outside[0]}: this model has layers 0 to {n_layers - 1}")
    return sorted(layers)


def lora_config(
    model: nn.Module,
    layers: list[int],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    use_rslora: bool = False,
    use_dora: bool = False,
    init: str = "default",
    replaced: Collection[int] = (),
) -> Any:
    """PEFT's configuration for all attention and MLP linears of the chosen layers.

    Args:
        replaced: layers whose MLP a transcoder stands for: it gets no adapter.

    Raises:
        InputError: an initialisation that changes the base weights (the teacher), or a rank that cannot be used.
    """
    from peft import LoraConfig

    if init not in _SAFE_INIT:
        raise InputError(
            f"LoRA initialisation {init!r} is refused, since it may change the base weights, which are the teacher: "
            f"use one of {', '.join(_SAFE_INIT)}"
        )
    if rank < 1:
        raise InputError(f"rank {rank} is too small: expected 1 or more")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout {dropout} is no share: expected a number in [0, 1)")
    if init == "orthogonal" and rank % 2:
        raise InputError(f"rank {rank} is odd: the orthogonal initialisation needs an even one")
    anatomy = anatomy_of(model)
    config: Any = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        init_lora_weights=True if init == "default" else init,  # type: ignore[arg-type]
        bias="none",
        target_modules=anatomy.linears(),
        layers_to_transform=layers,
        layers_pattern=anatomy.layers_name,
        exclude_modules=_excluded(model, anatomy, replaced),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in anatomy.layers[0].modules()),
    )
    config.target_modules = _taken_as_named(config, model)
    return config


def _taken_as_named(config: Any, model: nn.Module) -> set[str]:
    """The target modules that PEFT takes for what they name.

    In mixtures of experts it takes names of dense or shared MLPs (``mlp.shared_experts.up_proj``) for those of the
    experts in old checkpoints, and puts an adapter of twice the rank on the experts' fused weights instead.

    Raises:
        InputError: it takes none so.
    """
    named = set(config.target_modules)
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # versions before those did not
        return named
    probe = copy.deepcopy(config)
    convert_peft_config_for_transformers(probe, unwrap(model), None)
    kept = named & set(probe.target_modules)
    if not kept:
        raise InputError(
            f"no linear module of this model can be adapted: PEFT takes {', '.join(sorted(named))} for others"
        )
    return kept


def unreached(model: nn.Module, targets: Iterable[str]) -> tuple[list[str], float]:
    """The weights of the layers that adapters on these linear modules leave as they are, and the share that they are.

    Experts are kept as one tensor for all of them, which is no linear module.

    Returns:
        Their names inside a layer, and the reached weights' share of all matrices in the layers, 0 to 1.
    """
    outside: dict[str, None] = {}
    reached = n_all = 0
    names = set(targets)
    for layer in anatomy_of(model).layers:
        for name, weight in layer.named_parameters():
            if weight.dim() < 2 or "lora_" in name:
                continue
            owner = name.rpartition(".")[0].removesuffix(".base_layer")
            n_all += weight.numel()
            if owner in names:
                reached += weight.numel()
            else:
                outside[name.replace(".base_layer", "")] = None
    return list(outside), reached / max(1, n_all)


def _excluded(model: nn.Module, anatomy: Anatomy, replaced: Collection[int]) -> str | None:
    """A pattern for what gets no adapter; None where there is nothing to be kept out."""
    mlps = [rf".*\b{anatomy.layers_name}\.{i}\.{re.escape(str(anatomy.layouts[i].mlp))}\..*" for i in sorted(replaced)]
    patterns = [pattern for pattern in (_outside(model, anatomy), *mlps) if pattern is not None]
    return "|".join(patterns) or None


def _outside(model: nn.Module, anatomy: Anatomy) -> str | None:
    """A pattern for modules outside the text tower: an image tower's layers may bear the same names."""
    if anatomy.stack is anatomy.body:
        return None
    tower = next(name for name, module in unwrap(model).named_modules() if module is anatomy.stack)
    return rf"(?!{re.escape(tower)}\.).*"


def names_of(adapter: Adapter) -> list[str]:
    """The names that an adapter stands for."""
    return [] if adapter is None else [adapter] if isinstance(adapter, str) else list(adapter)


def wrappers(model: nn.Module) -> list[Any]:
    """Every module that PEFT has put round another: layers with weights of an adapter (LoRA, IA3, LoHa, VeRA, ...),
    and trained copies (``modules_to_save``)."""
    return [module for module in model.modules() if is_wrapper(module)]


def is_wrapper(module: nn.Module) -> bool:
    """Whether PEFT has put this module round another."""
    return "_disable_adapters" in vars(module) or hasattr(type(module), "_disable_adapters")


def inside(wrapper: nn.Module) -> nn.Module:
    """The module that a wrapper was put round."""
    inner = wrapper._modules
    return inner.get("original_module") or inner["base_layer"]  # type: ignore[return-value]


def holds(wrapper: Any, adapter: Adapter) -> bool:
    """Whether a wrapper has weights of an adapter."""
    there = getattr(wrapper, "_adapters", None) or _keys(wrapper)
    return any(name in there for name in names_of(adapter))


def _keys(wrapper: Any) -> set[str]:
    """The adapters that a tuner's layer has weights of, whatever its kind calls them."""
    named = (getattr(wrapper, name, None) for name in getattr(wrapper, "adapter_layer_names", ()))
    return {key for weights in named if weights is not None for key in weights}


@contextmanager
def only(model: nn.Module, adapter: Adapter) -> Iterator[None]:
    """The model with one of its adapters, or several together, and no other; None: with none, if it has any at all.

    Which adapters train is left alone, unlike PEFT's ``set_adapter``. The switch is the one PEFT's
    ``disable_adapter`` uses, but that takes stock of the whole model first: on the default model on two CPU cores it
    took longer than the training step around it.
    """
    layers = wrappers(model)
    before = [(module._disable_adapters, module._active_adapter) for module in layers]
    names = names_of(adapter)
    for module in layers:
        module._disable_adapters = adapter is None
        if adapter is not None:
            module._active_adapter = names
    try:
        yield
    finally:
        for module, (was_disabled, was_active) in zip(layers, before, strict=True):
            module._disable_adapters, module._active_adapter = was_disabled, was_active


def fuse(model: nn.Module) -> None:
    """Let LoRA layers add their product straight into the frozen layer's output, in place.

    The same numbers as PEFT's forward, which makes two more tensors of the output's size (the product scaled, and the
    sum); on a CPU these passes cost as much as the products. It covers one active plain LoRA adapter in one precision,
    and on GPUs one in float32 under autocast, whose input PEFT casts to float32 and autocast back again, in each layer;
    there the sum is rounded once where PEFT's is rounded twice. All else (DoRA, merged weights, autocast on a CPU,
    several adapters at once) goes through PEFT's own forward.
    """
    from peft.tuners.lora.layer import Linear

    from saelora.core.lora_linear import FusedLinear

    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLinear


def disabled(model: nn.Module) -> Any:
    """The model without its adapters: a context manager."""
    return only(model, None)


def parameters_of(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter, by their names in the model."""
    return {name: p for name, p in model.named_parameters() if "lora_" in name and adapter in name.split(".")}


def adapted_layers(model: nn.Module, adapter: Adapter = None) -> list[int]:
    """The layers that hold weights of an adapter (None: of any), read off the modules themselves.

    Weights in the body but in none of its layers (the embeddings, say) count as the lowest layer's: nothing above them
    is as it was. Those of the unembedding are no layer's.
    """
    anatomy = anatomy_of(model)
    layer_of = {id(module): i for i, layer in enumerate(anatomy.layers) for module in layer.modules()}
    held = [each for each in wrappers(anatomy.body) if adapter is None or holds(each, adapter)]
    return sorted({layer_of.get(id(each), 0) for each in held})


def adapter_name(model: nn.Module) -> Adapter:
    """The adapter that is active, or None where the model has none, or has them switched off."""
    active: dict[str, None] = {}
    for module in wrappers(model):
        if not module._disable_adapters:
            now = module._active_adapter
            active |= dict.fromkeys(name for name in ([now] if isinstance(now, str) else now) if holds(module, name))
    names = tuple(active)
    return names if len(names) > 1 else names[0] if names else None
