"""Transcoders of every format as one module: what each library's own forward computes, split as a splice needs it.

Shapes: D d_in, S d_sae, O d_out.
"""

from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, ReadSite
from saelora.records import JsonObject

# topk takes the largest after a ReLU, signed_topk before it, so that some may be negative
Activation = Literal["relu", "jumprelu", "topk", "signed_topk", "groupmax"]
WRITES = ("mlp_out", "mlp_module_out")
# the end of a name, in TransformerLens's spelling, or in transformers' with the side of the module -> what is read
_READS: dict[str, ReadSite] = {
    **{site: site for site in get_args(ReadSite)},
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_normalized",
    "hook_resid_mid": "resid_mid",
    "hook_resid_pre": "resid_pre",
    "mlp.input": "mlp_in",
    "pre_feedforward_layernorm.output": "mlp_in",
    "pre_feedforward_layernorm.input": "resid_mid",
    "input": "resid_pre",
}
_TWO_MEANINGS = "hook_mlp_in"


@dataclass
class TranscoderParts:
    """A transcoder as its files have it, before it is built.

    Args:
        weights: W_enc [D, S], W_dec [S, O], b_enc [S], b_dec [O]; threshold [S] of jumprelu; W_skip [O, D] or none;
            W_ahead [S, N, O] of a cross-layer transcoder's layer, what its latents write into the N layers above it.
        k: of topk and signed_topk the active latents, of groupmax the groups.
        hook_in, hook_out: names of what it reads and writes.  hf_in: the former as transformers' modules have it.
    """

    weights: dict[str, Tensor]
    activation: Activation
    k: int | None = None
    hook_in: str | None = None
    hook_out: str | None = None
    hf_in: str | None = None
    metadata: JsonObject = field(default_factory=dict)


@dataclass
class TranscoderConfig:
    """What SAEs' configurations have, of a transcoder."""

    d_in: int
    d_sae: int
    d_out: int
    activation: Activation
    k: int | None
    skip: bool
    metadata: SimpleNamespace
    n_ahead: int | None = None
    normalize_activations: str = "none"
    apply_b_dec_to_input: ClassVar[bool] = False
    rescale_acts_by_decoder_norm: ClassVar[bool] = False

    def architecture(self) -> str:
        """SAELens's name where it has one."""
        kind = "transcoder" if self.n_ahead is None else "cross_layer_transcoder"
        named = "" if self.activation == "relu" else f"{self.activation}_"
        return f"{named}{'skip_' if self.skip else ''}{kind}"

    def to_dict(self) -> JsonObject:
        return {**asdict(self), "metadata": vars(self.metadata)}


class Transcoder(nn.Module):
    """decode(encode(x)) + skip(x): [..., D] -> [..., O]."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    threshold: nn.Parameter
    W_skip: nn.Parameter

    def __init__(self, cfg: TranscoderConfig, weights: dict[str, Tensor], reads: ReadSite | None):
        super().__init__()
        self.cfg, self.reads = cfg, reads
        for name, weight in weights.items():
            setattr(self, name, nn.Parameter(weight, requires_grad=False))

    @property
    def dtype(self) -> torch.dtype:
        """The weights'."""
        return self.W_enc.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        pre = x @ self.W_enc + self.b_enc
        kind, k = self.cfg.activation, self.cfg.k
        if kind == "jumprelu":
            return torch.relu(pre) * (pre > self.threshold).to(pre.dtype)
        acts = pre if kind == "signed_topk" else torch.relu(pre)
        if kind == "relu":
            return acts
        assert k is not None
        if kind in ("topk", "signed_topk"):
            values, index = acts.topk(k, dim=-1, sorted=False)
        else:
            values, within = acts.unflatten(-1, (k, -1)).max(-1)
            index = within + torch.arange(0, acts.shape[-1], acts.shape[-1] // k, device=acts.device)
        return torch.zeros_like(acts).scatter(-1, index, values)

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_out"]:
        """What the latents make; without the skip connection, whose input they are not."""
        return feature_acts @ self.W_dec + self.b_dec

    def skip(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """What the skip connection adds; None where there is none."""
        return x @ self.W_skip.T if self.cfg.skip else None

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        made, skip = self.decode(self.encode(x)), self.skip(x)
        return made if skip is None else made + skip


class CrossLayerTranscoder(Transcoder):
    """One layer of a cross-layer transcoder: its latents write into its own MLP (``decode``) and into all above."""

    W_ahead: nn.Parameter

    @property
    def n_ahead(self) -> int:
        """How many layers above it writes into."""
        return self.W_ahead.shape[1]

    def ahead(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch n_ahead d_out"]:
        """What the latents write into each later layer, from the next one on."""
        made = (feature_acts @ self.W_ahead.flatten(1)).to(self.dtype)
        return made.view(*feature_acts.shape[:-1], *self.W_ahead.shape[1:])


def build_transcoder(parts: TranscoderParts, name: str, dtype: torch.dtype) -> Transcoder:
    """The transcoder made of `parts`, on the CPU in `dtype`.

    Raises:
        InputError: weights that do not fit one another, or that it reads or writes what no MLP reads or writes.
    """
    _check_shapes(parts, name)
    weights = {key: tensor.to(dtype, copy=True).contiguous() for key, tensor in parts.weights.items()}
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    reads = read_site(parts, name)
    names = {"hook_name": parts.hook_in, "hook_name_out": parts.hook_out, "hf_hook_name": parts.hf_in, "reads": reads}
    known = {key: value for key, value in {**parts.metadata, **names}.items() if value is not None}
    n_ahead = weights["W_ahead"].shape[1] if "W_ahead" in weights else None
    about = SimpleNamespace(**known)
    cfg = TranscoderConfig(d_in, d_sae, d_out, parts.activation, parts.k, "W_skip" in weights, about, n_ahead)
    return (Transcoder if n_ahead is None else CrossLayerTranscoder)(cfg, weights, reads)


def _check_shapes(parts: TranscoderParts, name: str) -> None:
    weights = parts.weights
    if any(weights[key].ndim != 2 for key in ("W_enc", "W_dec")):
        raise InputError(
            f"{name}: encoder and decoder have {weights['W_enc'].ndim} and {weights['W_dec'].ndim} dimensions, "
            "expected 2 each"
        )
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    n_ahead = weights["W_ahead"].shape[1] if "W_ahead" in weights else 0
    shapes = {"W_ahead": (d_sae, n_ahead, d_out)} | {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }
    for key, tensor in weights.items():
        expected = shapes.get(key, (d_sae,))
        if tuple(tensor.shape) != expected or not tensor.is_floating_point():
            raise InputError(
                f"{name}: {key} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected floats of {expected} beside "
                f"an encoder of d_in {d_in}, d_sae {d_sae}"
            )
    k = parts.k
    if parts.activation in ("topk", "signed_topk", "groupmax") and (k is None or not 0 < k <= d_sae):
        raise InputError(f"{name}: k is {k}, expected 1 to d_sae {d_sae}")
    if parts.activation == "groupmax" and d_sae % (k or 1):
        raise InputError(f"{name}: {d_sae} latents cannot be divided into {k} groups of one size")


def read_site(parts: TranscoderParts, name: str) -> ReadSite | None:
    """What a transcoder reads, by its files' names; None where they do not tell.

    Raises:
        InputError: a name that means two things or none, or another layer's.
    """
    hook = parts.hf_in or parts.hook_in
    if hook is None:
        return None
    prefix, layer, end = _split(hook)
    if end == _TWO_MEANINGS:
        raise InputError(
            f"{name} is a transcoder that reads {hook}, which to TransformerLens is the stream before the MLP's norm "
            "and to SAELens's loaders the MLP's input: say which with hf_hook_name in its metadata "
            "(model.layers.N.mlp.input, or model.layers.N.pre_feedforward_layernorm.input for the stream)"
        )
    if end not in _READS or not prefix:
        raise InputError(
            f"{name} is a transcoder that reads {hook}: expected an MLP's input or what its norm reads, such as "
            "blocks.N.mlp.hook_in, blocks.N.ln2.hook_normalized or blocks.N.hook_resid_mid"
        )
    written = _split(parts.hook_out or "")[1]
    if written and written != layer:
        raise InputError(f"{name} is a transcoder that reads {hook} and writes {parts.hook_out}: expected one layer")
    kwargs = parts.metadata.get("model_from_pretrained_kwargs") or {}
    folded = isinstance(kwargs, dict) and kwargs.get("fold_ln") is True
    # TransformerLens then has the norm's gain in the MLP's weights
    return "mlp_normalized" if folded and _READS[end] == "mlp_in" else _READS[end]


def _split(hook: str) -> tuple[str, str, str]:
    """A hook's name as what stands before the layer, the layer, and what stands after it."""
    words = hook.split(".")
    at = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return ("", "", hook) if at is None else (".".join(words[:at]), words[at], ".".join(words[at + 1 :]))


def check_written(hookpoint: Hookpoint, ref: str) -> None:
    """Raise InputError where a transcoder writes something else than an MLP's output."""
    if hookpoint.site not in WRITES:
        raise InputError(
            f"{ref} is a transcoder that writes {hookpoint}: only those that write an MLP's output (mlp_out, "
            "mlp_module_out) can be spliced in"
        )
