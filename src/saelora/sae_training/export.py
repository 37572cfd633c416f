"""From an SAE in training to the one that is used: SAELens' inference class and its folder on disk."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.records import JsonObject
from saelora.sae_training.trainer import SAETrainer
from saelora.sae_training.transcoder_trainer import TranscoderTrainer

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE


@torch.no_grad()
def inference_parts(trainer: SAETrainer, n_tokens: int) -> tuple[JsonObject, dict[str, Tensor]]:
    """Configuration and weights of a training SAE's inference SAE, on the CPU, with the activations' scale folded in.

    It works on raw activations, its decoder's rows have norm 1, and so an active latent's value is the
    length of what it adds, in the activations' own units. One of attn_z has SAELens' hook_z reshaping on
    (in and out: [..., heads, d_head]), as TransformerLens' hook has it.

    Args:
        n_tokens: tokens the SAE was trained on, for its metadata.

    Raises:
        InputError: the SAE has not seen its first chunk, so it has no scale yet.
    """
    if not trainer.scale:
        raise InputError("this SAE has not been trained yet: run at least one step before taking or saving it")
    if isinstance(trainer, TranscoderTrainer):
        return trainer.inference_parts(n_tokens)
    sae = copy.deepcopy(trainer.sae).to("cpu")
    sae.fold_activation_norm_scaling_factor(trainer.scale)
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)  # then the conversion below norms the rows
    if not rescaled:
        sae.fold_W_dec_norm()
    weights = sae.state_dict()
    sae.process_state_dict_for_saving_inference(weights)
    cfg = sae.cfg.get_inference_sae_cfg_dict()
    if rescaled and "rescale_acts_by_decoder_norm" in cfg:
        cfg["rescale_acts_by_decoder_norm"] = False  # rows of norm 1: nothing left to rescale
    if str(cfg["metadata"].get("hook_name")).endswith("hook_z"):
        cfg["reshape_activations"] = "hook_z"
    cfg["metadata"]["saelora"] = {
        "version": importlib.metadata.version("saelora"),
        "recipe": json.loads(json.dumps(asdict(trainer.recipe))),
        "n_tokens": n_tokens,
        "n_dead": int(trainer.dead_S.sum()),
    }
    return cfg, weights


def inference_sae(cfg: JsonObject, weights: dict[str, Tensor]) -> SAE[Any]:
    """SAELens' inference SAE of its parts."""
    from sae_lens.saes.sae import SAE

    result = SAE.from_dict(cfg)
    result.load_state_dict({name: tensor.to(result.dtype).contiguous() for name, tensor in weights.items()})
    return result.requires_grad_(False).eval()
