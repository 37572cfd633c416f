"""Where each model family keeps its layers, sublayer outputs, final norm and unembedding: the one table of it."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """Names inside one decoder layer.

    attn_proj: the projection whose input is z, the heads' outputs side by side.  attn_norm, mlp_norm: what stands
    between the sublayer and the residual stream, if anything does.  removes_mean: every module that reads the stream
    begins with a norm that takes off the mean over d_model (LayerNorm), so that a mean changes no logits.
    """

    attn: str
    attn_proj: str
    mlp: str = "mlp"
    attn_norm: str | None = None
    mlp_norm: str | None = None
    removes_mean: bool = False

    @property
    def sandwich(self) -> bool:
        """Whether a sublayer's own output differs from what is added to the residual stream."""
        return self.attn_norm is not None or self.mlp_norm is not None


_LLAMA = Family("self_attn", "self_attn.o_proj")
_SANDWICH = replace(_LLAMA, attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm")
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
    "olmo2": _SANDWICH,
    "olmo3": _SANDWICH,
    "phi": Family("self_attn", "self_attn.dense", removes_mean=True),
    "gpt2": Family("attn", "attn.c_proj", removes_mean=True),
    "gpt_neox": Family("attention", "attention.dense", removes_mean=True),
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
    family: Family
    unembedding: nn.Module  # as the model calls it: a linear layer, or what wraps one
    softcap: float | None  # of the final logits
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
            InputError: the layer is out of range.
        """
        if not 0 <= hookpoint.layer < self.n_layers:
            raise InputError(
                f"hookpoint {hookpoint} is out of range: this model has layers 0 to {self.n_layers - 1}; "
                f"is the SAE for another model?"
            )
        layer = self.layers[hookpoint.layer]
        match hookpoint.site:
            case "resid_pre":
                return layer, "input"
            case "resid_post":
                return layer, "output"
            case "attn_out":
                return layer.get_submodule(self.family.attn_norm or self.family.attn), "output"
            case "mlp_out":
                return layer.get_submodule(self.family.mlp_norm or self.family.mlp), "output"
            case "attn_module_out":
                return layer.get_submodule(self.family.attn), "output"
            case "mlp_module_out":
                return layer.get_submodule(self.family.mlp), "output"
            case "attn_z":
                return layer.get_submodule(self.family.attn_proj), "input"

    def width(self, hookpoint: Hookpoint) -> int:
        """Width of the activation at a hookpoint."""
        module, _ = self.site(hookpoint)
        if hookpoint.site == "attn_z":
            return widths(getattr(module, "base_layer", module))[0]
        return self.d_model

    def canonical(self, hookpoint: Hookpoint) -> Hookpoint:
        """One name for one activation: a module's own output, where it is added to the stream as it is."""
        return hookpoint if self.family.sandwich else hookpoint.added_as_is()

    def linears(self) -> list[str]:
        """Names, inside a layer, of all attention and MLP linear modules."""
        modules = dict(self.layers[0].named_modules())
        wrappers = tuple(f"{name}." for name, module in modules.items() if hasattr(module, "base_layer"))
        names = (
            name.removesuffix(".base_layer")
            for name, module in modules.items()
            if is_linear(module) and (name.endswith(".base_layer") or not name.startswith(wrappers))
        )
        return sorted(set(names))


def widths(linear: nn.Module) -> tuple[int, int]:
    """The widths of a linear module's input and output; a quantised one keeps its weight packed in another shape."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features  # type: ignore[return-value]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix product; not all quantised ones are subclasses of torch's."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return isinstance(module, Conv1D) or all(isinstance(size, int) for size in sizes)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model (or the model itself)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find the parts of a decoder-only transformers model, PEFT-wrapped or not.

    Raises:
        InputError: the family is not in the table.
    """
    model = unwrap(model)
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise InputError(
            f"model type {config.model_type!r} is not known: expected a decoder of {', '.join(sorted(_FAMILIES))}"
        )
    body: nn.Module = model.base_model  # type: ignore[assignment]
    stack = model.get_decoder()  # type: ignore[operator]
    unembedding = model.get_output_embeddings()  # type: ignore[operator]
    softcap = getattr(config, "final_logit_softcapping", None)
    layers_name = "h" if hasattr(stack, "h") else "layers"
    d_vocab = getattr(unembedding, "out_features", None) or unembedding.weight.shape[0]
    return Anatomy(body, stack, layers_name, family, unembedding, softcap, config.hidden_size, d_vocab)


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its input ids: the first parameter's device that is a real one.

    Parameters that are kept on disk until they are needed (accelerate's offloading) stand on the meta device.
    """
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
