"""Where each model family keeps its layers, sublayer outputs, final norm and unembedding: the one table of it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """Names inside one decoder layer. A sublayer's output is what is added to the residual stream."""

    attn_out: str
    attn_proj: str  # the projection whose input is z, the heads' outputs side by side
    mlp_out: str


_LLAMA = Family("self_attn", "self_attn.o_proj", "mlp")
_SANDWICH = Family("post_attention_layernorm", "self_attn.o_proj", "post_feedforward_layernorm")
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo": _LLAMA,
    "phi3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": _SANDWICH,
    "olmo3": _SANDWICH,
    "phi": Family("self_attn", "self_attn.dense", "mlp"),
    "gpt2": Family("attn", "attn.c_proj", "mlp"),
    "gpt_neox": Family("attention", "attention.dense", "mlp"),
}


@dataclass(frozen=True)
class Head:
    """The frozen unembedding: hidden states after the final norm -> logits."""

    weight: Tensor  # [d_vocab, d_model]
    bias: Tensor | None = None  # [d_vocab]
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[..., d_model] -> [..., d_vocab], in float32 (float64 stays float64).

        Without gradient, ``out`` [n_tokens, d_vocab] receives them and no other tensor of that size is made.
        """
        hidden = hidden.to(self.weight.dtype)
        if out is None:
            logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        if out.dtype == self.weight.dtype:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            out.copy_(hidden @ self.weight.T)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= self.scale
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)


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
    head: Head
    d_model: int
    d_vocab: int

    @property
    def layers(self) -> nn.ModuleList:
        return getattr(self.stack, self.layers_name)

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
                return layer.get_submodule(self.family.attn_out), "output"
            case "mlp_out":
                return layer.get_submodule(self.family.mlp_out), "output"
            case "attn_z":
                return layer.get_submodule(self.family.attn_proj), "input"

    def width(self, hookpoint: Hookpoint) -> int:
        """Width of the activation at a hookpoint."""
        module, _ = self.site(hookpoint)
        if hookpoint.site == "attn_z":
            linear = getattr(module, "base_layer", module)
            shape: torch.Size = linear.weight.shape  # type: ignore[assignment]
            return shape[0] if isinstance(linear, Conv1D) else shape[1]
        return self.d_model

    def linears(self) -> list[str]:
        """Names, inside a layer, of all attention and MLP linear modules."""
        names = (
            name.removesuffix(".base_layer")
            for name, module in self.layers[0].named_modules()
            if isinstance(module, nn.Linear | Conv1D) and "lora_" not in name
        )
        return sorted(set(names))


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
    head = Head(unembedding.weight, unembedding.bias, 1.0, getattr(config, "final_logit_softcapping", None))
    layers_name = "h" if hasattr(stack, "h") else "layers"
    return Anatomy(body, stack, layers_name, family, head, config.hidden_size, unembedding.weight.shape[0])
