"""Where an SAE sits in a model, and every spelling of it that the field uses."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from saelora.errors import InputError

Site = Literal["resid_pre", "resid_post", "mlp_out", "attn_out", "attn_z"]
SITES: tuple[str, ...] = get_args(Site)

_TL_NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z",
}
_SITE_OF_SUFFIX: dict[str, Site] = {
    **{site: site for site in get_args(Site)},
    **{tl: site for site, tl in _TL_NAMES.items()},  # type: ignore[misc]
    "": "resid_post",  # a decoder layer by itself, as sparsify names it, means its output
    "mlp": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
    "hook_z": "attn_z",
}
_PATTERN = re.compile(r"^(?:model\.|transformer\.|gpt_neox\.)*(?:layers|blocks|h)\.(\d+)(?:\.(.+))?$")


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


def parse_hookpoint(text: str) -> Hookpoint:
    """Read a hookpoint in this project's, TransformerLens' or sparsify's spelling.

    Raises:
        InputError: the text names no hookpoint that an SAE can be spliced into.
    """
    match = _PATTERN.match(text.strip())
    site = _SITE_OF_SUFFIX.get(match.group(2) or "") if match else None
    if match is None or site is None:
        raise InputError(
            f"hookpoint {text!r} is not known: expected layers.N.SITE with SITE one of {', '.join(SITES)}, "
            f"or a TransformerLens name such as blocks.12.hook_resid_post"
        )
    return Hookpoint(int(match.group(1)), site)
