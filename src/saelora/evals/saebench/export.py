"""What SAEBench reads: merged models as transformers folders, SAEs in SAELens' format.

TransformerLens leaves an unmerged LoRA out without a word, so an adapter is merged before anything of its world sees
the model.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from saelora.core.merging import plain_copy
from saelora.core.transcoding import transcoder_in
from saelora.errors import InputError
from saelora.evals.bos import with_bos
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import quiet_transformers
from saelora.saes.processing import is_centred


def export_model(model: Any, tokenizer: Any, folder: Path, *, merged: bool) -> Path:
    """Write a model as a transformers folder, on the CPU; the model itself is left as it is.

    Args:
        model: a transformers decoder, PEFT-wrapped or not, with hooks or without.
        tokenizer: written beside it, changed to begin every text with BOS.
        merged: with its adapter merged into the weights, in their own precision; else without the adapter.
    """
    plain = plain_copy(model, merged=merged)
    with quiet_transformers():
        plain.save_pretrained(folder)
        with_bos(tokenizer).save_pretrained(folder)
    return folder


def export_sae(sae: Any, hookpoint: Hookpoint, folder: Path) -> Path:
    """Write a SAELens SAE in its own format, with TransformerLens' name of its hookpoint.

    One of attn_z takes and gives [..., heads, d_head] there, as TransformerLens has it.

    Raises:
        InputError: it is of a model whose writing weights were centred, and the exported model's are not.
    """
    if transcoder_in(sae) is not None:
        raise InputError(
            f"a transcoder writes at {hookpoint}, and SAEBench reads SAEs' latents where they write: leave saebench "
            "out of --parts"
        )
    if is_centred(sae, hookpoint):
        raise InputError(
            f"the SAE at {hookpoint} was trained on activations without their mean (center_writing_weights), SAEBench "
            "would give it the plain ones: leave saebench out of --parts"
        )
    plain = copy.deepcopy(getattr(sae, "sae", sae)).to("cpu")
    metadata = plain.cfg.metadata
    metadata.hook_name, metadata.model_name, metadata.prepend_bos = hookpoint.tl_name, "model", True
    if metadata.context_size is None:
        metadata.context_size = 128  # SAEBench's; the store of activations only asks that there be one
    if hookpoint.site == "attn_z":
        plain.cfg.reshape_activations = "hook_z"
    with torch.no_grad():
        plain.save_model(folder)
    return folder
