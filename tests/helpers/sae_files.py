"""Tiny trained SAEs on disk, one writer a format, and the naive forward passes that they must agree with."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

D_IN, D_SAE, K = 6, 20, 4


def weights(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Random weights with a b_dec large enough that a wrong treatment of it shows."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    return {
        "W_enc": normal(D_IN, D_SAE),
        "W_dec": normal(D_SAE, D_IN),
        "b_enc": normal(D_SAE),
        "b_dec": 2 * normal(D_IN),
        "threshold": normal(D_SAE).abs(),
    }


def activations(seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.randn(3, 5, D_IN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def write_saelens(folder: Path, sae_weights: dict[str, torch.Tensor], **cfg: object) -> Path:
    """Native version 6 files; `cfg` overrides entries of the configuration, `metadata` among them."""
    folder.mkdir(parents=True, exist_ok=True)
    full = {
        "architecture": "jumprelu",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post", "model_name": "tiny"},
        **cfg,
    }
    (folder / "cfg.json").write_text(json.dumps(full))
    save_file({k: v.contiguous() for k, v in sae_weights.items()}, folder / "sae_weights.safetensors")
    return folder


def write_gemma_scope(folder: Path, sae_weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{k: v.numpy() for k, v in sae_weights.items()})
    return folder


def write_llama_scope(folder: Path, sae_weights: dict[str, torch.Tensor], **hyperparams: object) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    full = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.4,
        "top_k": K,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 3.5, "out": 3.5},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "hook_point_in": "blocks.7.hook_mlp_out",
        "hook_point_out": "blocks.7.hook_mlp_out",
        **hyperparams,
    }
    (folder / "hyperparams.json").write_text(json.dumps(full))
    save_file(linear_names(sae_weights), folder / "checkpoints" / "final.safetensors")
    return folder


def linear_names(sae_weights: dict[str, torch.Tensor], b_dec: str = "decoder.bias") -> dict[str, torch.Tensor]:
    """The names and orientation of torch.nn.Linear."""
    return {
        "encoder.weight": sae_weights["W_enc"].T.contiguous(),
        "encoder.bias": sae_weights["b_enc"],
        "decoder.weight": sae_weights["W_dec"].T.contiguous(),
        b_dec: sae_weights["b_dec"],
    }


def write_dictionary_learning(folder: Path, dict_class: str, state: dict[str, object], **trainer: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    full = {
        "dict_class": dict_class,
        "layer": 5,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_5",
        **trainer,
    }
    (folder / "config.json").write_text(json.dumps({"trainer": full, "buffer": {"ctx_len": 128}}))
    torch.save(state, folder / "ae.pt")
    return folder


def jump_relu(pre_acts: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    return torch.relu(pre_acts) * (pre_acts > threshold)


def top_k(pre_acts: torch.Tensor, k: int) -> torch.Tensor:
    values, indices = torch.relu(pre_acts).topk(k, dim=-1)
    return torch.zeros_like(pre_acts).scatter(-1, indices, values)
