"""The names inside one decoder layer: its sublayers, the norms behind them, its linear modules."""

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layout:
    """Names inside one decoder layer.

    attn: the attention, or what mixes tokens in its place.  attn_proj: the projection whose input is z, the heads'
    outputs side by side.  attn_norm, mlp_norm: what stands between the sublayer and the residual stream, if anything
    does.  mlp_reads: the norm whose output is the MLP's input, if one's is.  removes_mean: every module that reads the
    stream begins with a norm that takes off the mean over d_model (LayerNorm), so that a mean changes no logits.
    in_tuple: the layer returns its output as the first of a tuple.  linears: its linear modules, where they have been
    looked up.  refused: why a sublayer without a name here has none.
    """

    attn: str | None = None
    attn_proj: str | None = None
    mlp: str | None = "mlp"
    attn_norm: str | None = None
    mlp_norm: str | None = None
    mlp_reads: str | None = None
    removes_mean: bool = False
    in_tuple: bool = False
    linears: tuple[str, ...] | None = None
    refused: str | None = None

    @property
    def sandwich(self) -> bool:
        """Whether a sublayer's own output differs from what is added to the residual stream."""
        return self.attn_norm is not None or self.mlp_norm is not None


def widths(linear: nn.Module) -> tuple[int, int]:
    """The widths of a linear module's input and output; a quantised one keeps its weight packed in another shape."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features  # type: ignore[return-value]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix product; not all quantised ones are subclasses of torch's."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return isinstance(module, Conv1D) or all(isinstance(size, int) for size in sizes)
