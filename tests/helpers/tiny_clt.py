"""A cross-layer transcoder small enough to reason about, its arithmetic written plainly, and its files."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from saelora.models.hookpoints import Hookpoint
from saelora.saes.transcoder import TranscoderParts, build_transcoder

D_SAE = 24


def clt_weights(n_layers: int, d: int, seed: int = 0, size: float = 0.3) -> list[dict[str, Tensor]]:
    """A layer each, float64: W_enc [D, S], W_dec [S, layers from its own on, D], biases, threshold, W_skip [D, D]."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return size * torch.randn(*shape, generator=draw, dtype=torch.float64)

    return [
        {
            "W_enc": normal(d, D_SAE),
            "W_dec": normal(D_SAE, n_layers - layer, d),
            "b_enc": normal(D_SAE),
            "b_dec": normal(d),
            "threshold": normal(D_SAE).abs(),
            "W_skip": normal(d, d),
        }
        for layer in range(n_layers)
    ]


def members(
    weights: list[dict[str, Tensor]], reads: str = "mlp.hook_in", skips: bool = True, site: str = "mlp_out"
) -> dict[Hookpoint, torch.nn.Module]:
    """As loaders make them, by where each writes."""
    found = {}
    for layer, w in enumerate(weights):
        kept = {key: w[key] for key in ("W_enc", "b_enc", "b_dec", "threshold")} | {"W_dec": w["W_dec"][:, 0]}
        kept |= {"W_ahead": w["W_dec"][:, 1:]} | ({"W_skip": w["W_skip"]} if skips else {})
        hooks = {"hook_in": f"blocks.{layer}.{reads}", "hook_out": f"blocks.{layer}.hook_mlp_out"}
        found[Hookpoint(layer, site)] = build_transcoder(
            TranscoderParts(kept, "jumprelu", **hooks), "tiny", torch.float64
        )
    return found


def written(weights: list[dict[str, Tensor]], reads: list[Tensor], spared: list[Tensor] | None = None) -> Tensor:
    """What layer j writes, j being the last of ``reads``: [..., D] each, of the layers up to it.

    Args:
        spared: of each layer, where its latents write nothing.
    """
    j = len(reads) - 1
    made = weights[j]["b_dec"] + torch.einsum("...i,oi->...o", reads[j], weights[j]["W_skip"])
    for i, x in enumerate(reads):
        pre = torch.einsum("...d,ds->...s", x, weights[i]["W_enc"]) + weights[i]["b_enc"]
        acts = torch.where(pre > weights[i]["threshold"], pre, 0.0)
        if spared is not None:
            acts = acts.masked_fill(spared[i].unsqueeze(-1), 0.0)
        made = made + torch.einsum("...s,so->...o", acts, weights[i]["W_dec"][:, j - i])
    return made


def write_clt(folder: Path, weights: list[dict[str, Tensor]], threshold: bool = True, **config: str) -> Path:
    """In circuit-tracer's layout, in float32."""
    folder.mkdir(parents=True, exist_ok=True)

    def save(tensors: dict[str, Tensor], name: str) -> None:
        save_file({key: value.float().contiguous() for key, value in tensors.items()}, folder / name)

    for i, w in enumerate(weights):
        kept = {f"W_enc_{i}": w["W_enc"].T, f"b_enc_{i}": w["b_enc"], f"b_dec_{i}": w["b_dec"]}
        save(kept | ({f"threshold_{i}": w["threshold"]} if threshold else {}), f"W_enc_{i}.safetensors")
        save({f"W_dec_{i}": w["W_dec"]}, f"W_dec_{i}.safetensors")
    told = {"model_name": "tiny", "model_kind": "cross_layer_transcoder", "feature_input_hook": "mlp.hook_in"}
    told |= {"feature_output_hook": "hook_mlp_out", **config}
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in told.items()))
    return folder
