"""Where each model family keeps its layers, sublayer outputs, final norm and unembedding: the one table of it."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from saelora.errors import InputError
from saelora.models import derived
from saelora.models.hookpoints import Hookpoint, ReadPoint
from saelora.models.layout import Layout, is_linear, widths
from saelora.models.norms import Rule, without_gain

Side = Literal["input", "output"]


_LLAMA = Layout("self_attn", "self_attn.o_proj", mlp_reads="post_attention_layernorm")
_NORMS_BEHIND = Layout(
    "self_attn", "self_attn.o_proj", attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"
)
_SANDWICH = replace(_NORMS_BEHIND, mlp_reads="pre_feedforward_layernorm")
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo": replace(_LLAMA, removes_mean=True),
    "phi3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": _NORMS_BEHIND,
    "olmo3": _NORMS_BEHIND,
    "phi": Layout("self_attn", "self_attn.dense", mlp_reads="input_layernorm", removes_mean=True),
    "gpt2": Layout("attn", "attn.c_proj", mlp_reads="ln_2", removes_mean=True),
    "gpt_neox": Layout("attention", "attention.dense", mlp_reads="post_attention_layernorm", removes_mean=True),
}


@dataclass(frozen=True)
class Anatomy:
    """A decoder's parts, found once.

    ``body(input_ids=..., attention_mask=...)`` runs embeddings, layers and final norm. ``stack`` holds the layers:
    the body itself, or the text tower inside it where the model reads images too.
    """

    body: nn.Module
    stack: nn.Module
    layers_name: str  # the stack's attribute that holds the layers, "layers" or "h"
    layouts: tuple[Layout, ...]  # of each layer
    unembedding: nn.Module  # as the model calls it: a linear layer, or what wraps one
    softcap: float | None  # of the final logits
    logit_scale: float  # what the unembedding's output is multiplied by, before a softcap
    d_model: int
    d_vocab: int

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self.stack, self.layers_name)
        return layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def site(self, hookpoint: Hookpoint) -> tuple[nn.Module, Side]:
        """The module whose input or output is the hookpoint's activation.

        Raises:
            InputError: the layer is out of range, or the model has no such site there.
        """
        if not 0 <= hookpoint.layer < self.n_layers:
            raise InputError(
                f"hookpoint {hookpoint} is out of range: this model has layers 0 to {self.n_layers - 1}; "
                f"is the SAE for another model?"
            )
        layer, layout = self.layers[hookpoint.layer], self.layouts[hookpoint.layer]
        match hookpoint.site:
            case "resid_pre":
                return layer, "input"
            case "resid_post":
                return layer, "output"
            case "attn_out":
                name = layout.attn_norm or layout.attn
            case "mlp_out":
                name = layout.mlp_norm or layout.mlp
            case "attn_module_out":
                name = layout.attn
            case "mlp_module_out":
                name = layout.mlp
            case "attn_z":
                name = layout.attn_proj
        if name is None:
            why = layout.refused or "no linear module makes its attention's output"
            raise InputError(f"layer {hookpoint.layer} of this model has no {hookpoint.site}: {why}")
        return layer.get_submodule(name), "input" if hookpoint.site == "attn_z" else "output"

    def width(self, hookpoint: Hookpoint) -> int:
        """Width of the activation at a hookpoint."""
        module, _ = self.site(hookpoint)
        if hookpoint.site == "attn_z":
            return widths(getattr(module, "base_layer", module))[0]
        return self.d_model

    def mlp(self, layer: int) -> nn.Module:
        """A layer's MLP; InputError where it has none that is known."""
        return self.site(Hookpoint(layer, "mlp_module_out"))[0]

    def reading(self, point: ReadPoint) -> tuple[nn.Module, Rule | None]:
        """The module whose input tells what a transcoder reads, and how: None where it is that input itself.

        Raises:
            InputError: the layer is out of range, or the model has no such activation there.
        """
        mlp = self.mlp(point.layer)
        if point.site == "resid_pre":
            return self.layers[point.layer], None
        if point.site == "mlp_in":
            if is_linear(getattr(mlp, "base_layer", mlp)):
                raise InputError(
                    f"layer {point.layer} of this model has no mlp_in: its MLP adds to the stream itself, and the "
                    "last linear layer of it alone is known"
                )
            return mlp, None
        name = self.layouts[point.layer].mlp_reads
        if name is None:
            raise InputError(
                f"layer {point.layer} of this model has no {point.site}: no norm makes its MLP's input; a transcoder "
                "that reads that input as it is reads mlp_in"
            )
        norm = self.layers[point.layer].get_submodule(name)
        return norm, None if point.site == "resid_mid" else without_gain(norm, self.d_model, str(point))

    def canonical(self, hookpoint: Hookpoint) -> Hookpoint:
        """One name for one activation: a module's own output, where it is added to the stream as it is."""
        here = self.layouts[hookpoint.layer] if hookpoint.layer < self.n_layers else self.layouts[0]
        return hookpoint if here.sandwich else hookpoint.added_as_is()

    @property
    def removes_mean(self) -> bool:
        """Whether no module that reads the stream sees its mean over d_model."""
        return all(layout.removes_mean for layout in self.layouts)

    def linears(self) -> list[str]:
        """Names, inside a layer, of all attention and MLP linear modules; of layers that differ, those of each."""
        found = {name for layout in self.layouts for name in layout.linears or ()}
        if found:
            return sorted(found)
        modules = dict(self.layers[0].named_modules())
        wrappers = tuple(f"{name}." for name, module in modules.items() if hasattr(module, "base_layer"))
        names = (
            name.removesuffix(".base_layer")
            for name, module in modules.items()
            if is_linear(module) and (name.endswith(".base_layer") or not name.startswith(wrappers))
        )
        return sorted(set(names))


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model (or the model itself)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


_derived: WeakKeyDictionary[nn.Module, tuple[str, tuple[Layout, ...]]] = WeakKeyDictionary()


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find the parts of a decoder-only transformers model, PEFT-wrapped or not.

    Those of a family that is not in the table are found by running a few tokens (``saelora.models.derived``), once for
    a model: bare and in evaluation mode, as it is when it has been loaded.

    Raises:
        InputError: a family that is not in the table, and whose layers cannot be told by running them either.
    """
    model = unwrap(model)
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    body = _body(model)
    stack = model.get_decoder()  # type: ignore[operator]
    stack = body if stack is model else stack
    unembedding = model.get_output_embeddings()  # type: ignore[operator]
    softcap = getattr(config, "final_logit_softcapping", None)
    known = _FAMILIES.get(config.model_type)
    if known is not None:
        layers_name = "h" if hasattr(stack, "h") else "layers"
        layouts = (known,) * len(getattr(stack, layers_name))
    else:
        if model not in _derived:
            what = f"model type {config.model_type!r}"
            name = derived.layer_list(stack, config.num_hidden_layers, what)
            _derived[model] = name, derived.layouts(body, list(getattr(stack, name)), config.vocab_size, what)
        layers_name, layouts = _derived[model]
    weight = getattr(unembedding, "weight", None)
    d_vocab = getattr(unembedding, "out_features", None) or (config.vocab_size if weight is None else weight.shape[0])
    scale = _logit_scale(config)
    return Anatomy(body, stack, layers_name, layouts, unembedding, softcap, scale, config.hidden_size, d_vocab)


def _body(model: nn.Module) -> nn.Module:
    """What runs embeddings, layers and final norm: the model inside the one with a head."""
    body: nn.Module = model.base_model  # type: ignore[assignment]
    if body is not model:
        return body
    inner = [child for child in model.children() if hasattr(child, "get_input_embeddings")]
    return inner[0] if len(inner) == 1 else body  # Llama 4's text model calls itself its base


def _logit_scale(config: Any) -> float:
    """Cohere and Falcon-H1 multiply the logits by a number of their configuration, Granite divides them by one."""
    factors = [getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier")]
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    return float(math.prod(f for f in factors if f is not None)) / divisor


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its input ids: the first parameter's device that is a real one.

    Parameters that are kept on disk until they are needed (accelerate's offloading) stand on the meta device.
    """
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
