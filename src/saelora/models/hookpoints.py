"""Where an SAE sits in a model, and every spelling of it that the field uses."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from saelora.errors import InputError

# A sublayer's "out" is what is added to the residual stream, its "module_out" what the module returns. They are one
# tensor but where a norm follows the module (Gemma 2 and 3, OLMo 2 and 3).
Site = Literal["resid_pre", "resid_post", "mlp_out", "attn_out", "attn_z", "mlp_module_out", "attn_module_out"]
SITES: tuple[str, ...] = get_args(Site)
# What a transcoder reads: the MLP's input, the same before the gain and bias of the norm that makes it, the residual
# stream that this norm is given, or the layer's input.
ReadSite = Literal["mlp_in", "mlp_normalized", "resid_mid", "resid_pre"]

_TL_NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z",
    # TransformerBridge's; HookedTransformer has no such hook
    "mlp_module_out": "mlp.hook_out",
    "attn_module_out": "attn.hook_out",
}
_TL_READ = {
    "mlp_in": "mlp.hook_in",
    "mlp_normalized": "ln2.hook_normalized",
    "resid_mid": "hook_resid_mid",
    "resid_pre": "hook_resid_pre",
}
_SITE_OF_SUFFIX: dict[str, Site] = {
    **{site: site for site in get_args(Site)},
    **{tl: site for site, tl in _TL_NAMES.items()},  # type: ignore[misc]
    "": "resid_post",  # a decoder layer by itself, as sparsify names it, means its output
    "mlp": "mlp_module_out",
    "attn": "attn_module_out",
    "self_attn": "attn_module_out",
    "attention": "attn_module_out",
    "self_attn.o_proj": "attn_module_out",  # its last step
    "hook_z": "attn_z",
}
# Gemma Scope 2 says which side of a module; a norm of the sandwich families stands between module and stream
_SITE_OF_SIDE: dict[str, Site] = {
    "input": "resid_pre",
    "output": "resid_post",
    "mlp.output": "mlp_module_out",
    "self_attn.output": "attn_module_out",
    "self_attn.o_proj.input": "attn_z",
    "self_attn.o_proj.output": "attn_module_out",
    "post_feedforward_layernorm.output": "mlp_out",
}
# families of these names add a module's own output to the stream
_ADDED_AS_IS: dict[Site, Site] = {"mlp_module_out": "mlp_out", "attn_module_out": "attn_out"}
_PLAIN_FAMILY = re.compile(r"(?:^|\.)(?:h|gpt_neox\.layers)\.\d+(?:\.|$)|\.attention$")
_PATTERN = re.compile(
    r"^(?:(?:model|base_model|transformer|gpt_neox|language_model|text_model|module|_orig_mod)\.)*"
    r"(?:layers|blocks|h)\.(\d+)(?:\.(.+))?$"
)


@dataclass(frozen=True, order=True)
class Hookpoint:
    """One activation of a decoder: a layer (0-based) and a site in it."""

    layer: int
    site: Site = "resid_post"

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.site}"

    @property
    def tl_name(self) -> str:
        """TransformerLens' name, as SAELens writes it into an SAE's metadata."""
        return f"blocks.{self.layer}.{_TL_NAMES[self.site]}"

    def added_as_is(self) -> "Hookpoint":
        """The same activation in a model whose modules' outputs are added to the stream without a norm between."""
        return Hookpoint(self.layer, _ADDED_AS_IS.get(self.site, self.site))


@dataclass(frozen=True, order=True)
class ReadPoint:
    """An activation that a transcoder reads, in the layer that it writes in."""

    layer: int
    site: ReadSite

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.site}"

    @property
    def tl_name(self) -> str:
        """The name that readers of transcoders take for it, TransformerLens' where that has one meaning."""
        return f"blocks.{self.layer}.{_TL_READ[self.site]}"


def parse_hookpoint(text: str) -> Hookpoint:
    """Read a hookpoint in this project's, TransformerLens' or the transformers library's spelling (sparsify's too).

    A module's name means its output, so `layers.3.mlp` is mlp_module_out; `h.3.mlp` and `gpt_neox.layers.3.mlp` are
    mlp_out, since GPT-2 and GPT-NeoX add that to the residual stream.

    Raises:
        InputError: the text names no hookpoint that an SAE can be spliced into.
    """
    text = text.strip()
    match = _PATTERN.match(text)
    suffix = (match.group(2) or "") if match and not text.endswith(".") else "."
    site = _SITE_OF_SUFFIX.get(suffix) or _SITE_OF_SIDE.get(suffix)
    if match is None or site is None:
        raise InputError(
            f"hookpoint {text!r} is not known: expected layers.N.SITE with SITE one of {', '.join(SITES)}, "
            f"or a TransformerLens name such as blocks.12.hook_resid_post"
        )
    found = Hookpoint(int(match.group(1)), site)
    return found.added_as_is() if _PLAIN_FAMILY.search(text) else found
