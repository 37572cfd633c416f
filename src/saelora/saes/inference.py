"""The SAEs that are spliced in: SAELens' standard, TopK, JumpReLU and gated inference classes, without SAELens.

Importing SAELens takes seconds, and it brings fifty packages. What these compute, hold, call themselves and save is
what SAELens 6 does (`tests/saes/test_inference.py` runs both, bit for bit); hooks and initial weights are left out, and
activations at attn_z are taken with their heads merged.

Shapes: D d_in, S d_sae.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from saelora.records import JsonObject
from saelora.saes.saelens import AT_RUN_TIME, NORMALISATIONS, saelens_version

_TOLERANCE = 1e-5  # SAELens' in layer_norm


class SAEMetadata:
    """Where an SAE comes from: any attributes, None where there is none of a name."""

    def __init__(self, **known: Any):
        version = saelens_version()
        self.__dict__.update({"sae_lens_version": version, "sae_lens_training_version": version, **known})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy and pickle look for
            raise AttributeError(name)
        return None

    def to_dict(self) -> JsonObject:
        return dict(self.__dict__)


@dataclass
class SAEConfig:
    """SAELens' entries; ``device`` and ``dtype`` are those of the weights."""

    d_in: int
    d_sae: int
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    metadata: SAEMetadata = field(default_factory=SAEMetadata)

    _architecture: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        if self.normalize_activations not in NORMALISATIONS:
            raise ValueError(
                f"normalize_activations must be one of {', '.join(NORMALISATIONS)}. Got {self.normalize_activations}"
            )

    @classmethod
    def architecture(cls) -> str:
        """SAELens' name of it."""
        return cls._architecture

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self:
        """From entries of which others than its own are left out, as SAELens does."""
        names = {entry.name for entry in fields(cls)} - {"metadata"}
        own = {name: value for name, value in entries.items() if name in names}
        return cls(**own, metadata=SAEMetadata(**entries.get("metadata", {})))

    def to_dict(self) -> JsonObject:
        """What SAELens writes to cfg.json."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**entries, "metadata": self.metadata.to_dict(), "architecture": self.architecture()}


@dataclass
class StandardSAEConfig(SAEConfig):
    pass


@dataclass
class TopKSAEConfig(SAEConfig):
    k: int = 100
    rescale_acts_by_decoder_norm: bool = False

    _architecture: ClassVar[str] = "topk"


@dataclass
class JumpReLUSAEConfig(SAEConfig):
    _architecture: ClassVar[str] = "jumprelu"


@dataclass
class GatedSAEConfig(SAEConfig):
    _architecture: ClassVar[str] = "gated"


class InferenceSAE(nn.Module):
    """W_enc [D, S], W_dec [S, D], b_dec [D], and what its architecture adds, [S] each; built without values."""

    hook_z_reshaping_mode = False  # heads are merged
    latent_vectors: ClassVar[tuple[str, ...]] = ("b_enc",)

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, cfg: Any):
        super().__init__()
        self.cfg = cfg
        options: Any = {"dtype": getattr(torch, cfg.dtype), "device": cfg.device}
        self.b_dec = nn.Parameter(torch.empty(cfg.d_in, **options))
        self.W_dec = nn.Parameter(torch.empty(cfg.d_sae, cfg.d_in, **options))
        self.W_enc = nn.Parameter(torch.empty(cfg.d_in, cfg.d_sae, **options))
        for name in self.latent_vectors:
            self.register_parameter(name, nn.Parameter(torch.empty(cfg.d_sae, **options)))
        self._scales: tuple[Tensor, Tensor | float] | None = None  # of the latest input: what the output is to undo

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As every module's; the configuration says where the weights are and of what type."""
        moved: Self = super().to(*args, **kwargs)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        return moved

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        raise NotImplementedError

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return self._denormalised(feature_acts @ self.W_dec + self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x))

    def _input(self, x: Tensor) -> Tensor:
        """The encoder's input: in the weights' type, normalised, b_dec off where the configuration says so."""
        x = self._normalised(x.to(self.dtype))
        shifted: Tensor = x - self.b_dec * self.cfg.apply_b_dec_to_input
        return shifted

    def _normalised(self, x: Tensor) -> Tensor:
        kind = self.cfg.normalize_activations
        if kind == "constant_norm_rescale":
            factor = (self.cfg.d_in**0.5) / x.norm(dim=-1, keepdim=True)
            self._scales = (factor, 0.0)
            scaled: Tensor = x * factor
            return scaled
        if kind == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            x = x - mean
            deviation = x.std(dim=-1, keepdim=True)
            self._scales = (deviation, mean)
            return x / (deviation + _TOLERANCE)
        return x

    def _denormalised(self, recon: Tensor) -> Tensor:
        kind = self.cfg.normalize_activations
        if kind not in AT_RUN_TIME:
            return recon
        if self._scales is None:
            raise RuntimeError(f"decode was called without encode, whose input's scale it needs ({kind})")
        (scale, shift), self._scales = self._scales, None
        return recon / scale if kind == "constant_norm_rescale" else recon * scale + shift

    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Into the weights: the factor on activations that the SAE was trained with."""
        self.W_enc.data *= scaling_factor
        self.W_dec.data /= scaling_factor
        self.b_dec.data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Float[Tensor, " d_in"], matrix: Float[Tensor, "d_in d_in"], inverse: Float[Tensor, "d_in d_in"]
    ) -> None:
        """Into the weights: z = (x - mean) @ matrix, that the SAE was trained on, and its inverse."""
        dtype = torch.promote_types(self.dtype, matrix.dtype)
        mean, matrix, inverse = (tensor.to(self.device, dtype) for tensor in (mean, matrix, inverse))
        self.W_enc.data.copy_(matrix @ self.W_enc.data.to(dtype))
        if not self.cfg.apply_b_dec_to_input:
            self._shift_input(mean, dtype)
        self.W_dec.data.copy_(self.W_dec.data.to(dtype) @ inverse)
        self.b_dec.data.copy_(self.b_dec.data.to(dtype) @ inverse + mean)
        self.cfg.normalize_activations = "none"

    def _shift_input(self, mean: Tensor, dtype: torch.dtype) -> None:
        """Take the encoder's response to ``mean`` off its biases."""
        self.b_enc.data.sub_(mean @ self.W_enc.data.to(dtype))

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Norm the decoder's rows; what is of a latent takes the norms over."""
        norms_S = self.W_dec.norm(dim=-1).clamp(min=1e-8)
        self.W_dec.data.div_(norms_S.unsqueeze(1))
        self.W_enc.data.mul_(norms_S.unsqueeze(1).T)
        for name in self.latent_vectors:
            if name != "r_mag":  # a factor's logarithm
                getattr(self, name).data.mul_(norms_S)

    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write weights and configuration in SAELens' format."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        weights, cfg = path / "sae_weights.safetensors", path / "cfg.json"
        save_file(self.state_dict(), weights)
        cfg.write_text(json.dumps(self.cfg.to_dict()))
        return weights, cfg


class StandardSAE(InferenceSAE):
    """ReLU."""

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return (self._input(x) @ self.W_enc + self.b_enc).relu()


class TopKSAE(InferenceSAE):
    """The k largest pre-activations; ranked, and measured, by what they add where the decoder's norms count."""

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        pre = self._input(x) @ self.W_enc + self.b_enc
        if self.cfg.rescale_acts_by_decoder_norm:
            pre = pre * self.W_dec.norm(dim=-1)
        values, index = torch.topk(pre, k=self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, index, values.relu())

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        if self.cfg.rescale_acts_by_decoder_norm:
            feature_acts = feature_acts * (1 / self.W_dec.norm(dim=-1))
        return super().decode(feature_acts)

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Raises NotImplementedError where other latents would be chosen then."""
        if not self.cfg.rescale_acts_by_decoder_norm:
            raise NotImplementedError("folding the decoder's norms would change which latents are the k largest")
        super().fold_W_dec_norm()

    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Float[Tensor, " d_in"], matrix: Float[Tensor, "d_in d_in"], inverse: Float[Tensor, "d_in d_in"]
    ) -> None:
        if self.cfg.rescale_acts_by_decoder_norm:  # the rows' norms change, and the choice is not to
            self.fold_W_dec_norm()
            self.cfg.rescale_acts_by_decoder_norm = False
        super().fold_activation_whitening(mean, matrix, inverse)


class JumpReLUSAE(InferenceSAE):
    """ReLU where the pre-activation is above the latent's threshold."""

    latent_vectors = ("threshold", "b_enc")
    threshold: nn.Parameter

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        pre = self._input(x) @ self.W_enc + self.b_enc
        return pre.relu() * (pre > self.threshold).to(pre.dtype)


class GatedSAE(InferenceSAE):
    """A gate that opens above zero, and a magnitude by the same encoder, rescaled."""

    latent_vectors = ("b_gate", "r_mag", "b_mag")
    b_gate: nn.Parameter
    r_mag: nn.Parameter
    b_mag: nn.Parameter

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        x = self._input(x)
        gate = (x @ self.W_enc + self.b_gate > 0).to(self.dtype)
        return gate * (x @ (self.W_enc * self.r_mag.exp()) + self.b_mag).relu()

    def _shift_input(self, mean: Tensor, dtype: torch.dtype) -> None:
        shift_S = mean.to(self.W_enc) @ self.W_enc
        self.b_gate.data.sub_(shift_S)
        self.b_mag.data.sub_(shift_S * self.r_mag.exp())


CLASSES: dict[str, tuple[type[InferenceSAE], type[SAEConfig]]] = {
    "standard": (StandardSAE, StandardSAEConfig),
    "topk": (TopKSAE, TopKSAEConfig),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
    "gated": (GatedSAE, GatedSAEConfig),
}


def architecture_of(sae: object) -> str | None:
    """ "standard", "topk", "jumprelu" or "gated" for one of the classes above or SAELens' own; None for others."""
    kind = type(sae)
    for name, (ours, _) in CLASSES.items():
        if kind is ours or (kind.__name__ == ours.__name__ and kind.__module__.startswith("sae_lens.saes.")):
            return name
    return None


def inference_sae(cfg: JsonObject, weights: Mapping[str, Tensor]) -> InferenceSAE:
    """Of a configuration of SAELens 6 and weights, which become its own, on the CPU.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: they do not make an SAE.
    """
    kind, config = CLASSES[cfg["architecture"]]
    of = config.of(cfg)
    if of.reshape_activations == "hook_z" and not str(of.metadata.hook_name or "_z").endswith("_z"):
        raise ValueError("This method should only be called for hook_z SAEs.")
    device, of.device = of.device, "meta"
    sae = kind(of)
    sae.load_state_dict(dict(weights), assign=True)
    return sae.to(dtype=getattr(torch, of.dtype), device=device)
