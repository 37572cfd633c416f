"""Sample continuations: the original model, the spliced one, and the adapted one on the same prompts."""

from typing import Any

import torch
from torch import Tensor, nn

from saelora.core import lora
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import Variant
from saelora.models.anatomy import device_of


def prompts_from(rows: Tensor, n_prompts: int, n_tokens: int = 32) -> Tensor:
    """The first tokens of evenly spaced rows: [n_prompts, n_tokens], of every row where there are fewer."""
    n_prompts = min(n_prompts, len(rows))
    picks = [len(rows) * i // n_prompts for i in range(n_prompts)]
    return rows[picks, : min(n_tokens, rows.shape[1])]


def continuations(
    subject: SplicedModel, tokenizer: Any, prompts: Tensor, n_new_tokens: int = 40
) -> list[dict[str, str]]:
    """Greedy continuations of prompts [n_prompts, n_tokens] by each model.

    Returns:
        One dict a prompt: prompt, original, spliced, adapted (the last only where there is an adapted model).
    """
    model = subject.model
    variants = {"original": Variant.BASE, "spliced": Variant.SPLICED}
    if lora.adapter_name(model) or subject.adapted is not None:
        variants["adapted"] = Variant.ADAPTED
    prompts = prompts.to(device_of(model))
    out = [{"prompt": text_of(tokenizer, row)} for row in prompts]
    for name, variant in variants.items():
        with subject.running_as(variant):
            cached = not (variant.has_saes and subject.splice_of(variant).clean_points)
            ids = generate(model, tokenizer, prompts, n_new_tokens, use_cache=cached)
        for sample, row in zip(out, ids, strict=True):
            sample[name] = text_of(tokenizer, row[prompts.shape[1] :])
    return out


def generate(model: nn.Module, tokenizer: Any, prompts: Tensor, n_new_tokens: int, *, use_cache: bool = True) -> Tensor:
    """Prompts [n_prompts, n_tokens] with their greedy continuations, of n_new_tokens at most."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    made: Tensor = model.generate(  # type: ignore[operator]
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=n_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        use_cache=use_cache,
    )
    return made


def text_of(tokenizer: Any, ids: Tensor) -> str:
    """Token ids [n_tokens] as text, special tokens left out."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
