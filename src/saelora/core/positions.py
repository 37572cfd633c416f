"""Where each token stands in its own text, read off what a decoder is really given.

A position is an index among the real tokens of a text: 0 for the first, -1 for padding. Versions of transformers rename
the decoder's arguments, drop a mask that hides nothing, and hand over prepared masks, so nothing hangs on one keyword;
where positions cannot be told, that is an error and never a guess.

Shapes: B rows, S tokens that are given, T keys: those and the cached ones.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saelora.errors import InputError

HIDDEN = -1e3  # what an additive mask holds for keys that are not attended to lies below


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module is called with, by the names that its forward gives to it."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def check_signature(body: nn.Module) -> None:
    """Raise InputError where a decoder does not take its tokens and its mask under the names that are read here."""
    names = inspect.signature(body.forward).parameters
    if "input_ids" in names and "attention_mask" not in names:
        raise InputError(
            f"{type(body).__name__} of this version of transformers takes no attention_mask ({', '.join(names)}), so "
            "padding cannot be told from text: install a version that saelora's pyproject.toml allows"
        )


def given_positions(given: Mapping[str, Any]) -> Int[Tensor, "batch seq"]:
    """Positions of a decoder's ``input_ids``, from its cache, its mask and, where it has neither, its position ids.

    Args:
        given: the decoder's arguments by name. A cache is known by what it can do, not by its argument's name.

    Raises:
        InputError: no input_ids, or positions that cannot be told.
    """
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if not isinstance(ids, Tensor):
        raise InputError("a spliced model needs input_ids (got inputs_embeds): the token mask is read from them")
    if isinstance(mask, Mapping):  # a mask for each type of attention; the widest window tells most
        mask = mask["full_attention"] if "full_attention" in mask else next(iter(mask.values()))
    caches = {id(value): value for value in given.values() if callable(getattr(value, "get_seq_length", None))}
    lengths = {int(cache.get_seq_length()) for cache in caches.values()}
    if len(lengths) > 1:
        raise InputError(f"the model is given caches of {sorted(lengths)} tokens: positions cannot be told, give one")
    if not caches:
        return _without_cache(ids, mask, given)
    past = lengths.pop()
    if isinstance(mask, Tensor) and mask.dim() == 2:
        mask = mask[:, : past + ids.shape[1]]  # it may cover the whole of a static cache
    return positions(ids, mask, past)


def positions(
    input_ids: Int[Tensor, "batch seq"], attention_mask: Any = None, past: int = 0
) -> Int[Tensor, "batch seq"]:
    """Positions of tokens that follow ``past`` cached ones.

    Args:
        attention_mask: None (nothing is hidden), [batch, past + seq] (1 = a real token), or [batch or 1, heads or 1,
            seq, keys], True or 0 where a query attends to a key. Under a sliding window of w keys, of which none is
            global, the latter tells positions up to w - 1 and is silent on how far beyond they are.

    Raises:
        InputError: a mask of another form, or one that does not cover the tokens.
    """
    n_rows, n_given = input_ids.shape
    index_S = torch.arange(past, past + n_given, device=input_ids.device)
    if attention_mask is None:
        return index_S.expand(n_rows, -1)
    dim = attention_mask.dim() if isinstance(attention_mask, Tensor) else None
    if dim == 2 and attention_mask.shape[1] == past + n_given:
        real_BT = attention_mask.to(input_ids.device).bool()
        return torch.where(real_BT, real_BT.cumsum(1) - 1, -1)[:, past:]
    if dim == 4 and attention_mask.shape[2] == n_given and attention_mask.shape[3] >= n_given:
        return _from_prepared(attention_mask.to(input_ids.device), past).expand(n_rows, -1)
    shape = list(attention_mask.shape) if dim is not None else type(attention_mask).__name__
    raise InputError(
        f"positions cannot be told from an attention mask {shape} for {n_given} tokens after {past} cached ones: "
        f"expected none, [batch, {past + n_given}] or [batch, 1, {n_given}, keys]"
    )


def _from_prepared(mask: Tensor, past: int) -> Tensor:
    """From a mask [batch, heads, seq, keys]: how far each query stands behind the first key that it attends to."""
    attended_BST = (mask if mask.dtype == torch.bool else mask > HIDDEN).any(1)
    n_given, n_keys = attended_BST.shape[1:]
    # a sliding window's keys have moved up once it is full; then a query's own key is as far from the end as it is
    own_S = min(past, n_keys - n_given) + torch.arange(n_given, device=mask.device)
    sees_itself_BS = attended_BST.gather(2, own_S.view(1, -1, 1).expand(len(mask), -1, 1))[..., 0]
    return torch.where(sees_itself_BS, own_S - attended_BST.int().argmax(2), -1)


def _without_cache(ids: Tensor, mask: Any, given: Mapping[str, Any]) -> Tensor:
    """Positions where no cache is given: rows begin texts, and without a mask so does what position ids say begins one.

    Without a mask transformers takes position ids that do not rise by one for the border of two packed texts.
    """
    if mask is not None:
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[3] != ids.shape[1]:
            raise InputError(
                f"an attention mask over {mask.shape[3]} keys for {ids.shape[1]} tokens, and no cache: positions "
                "cannot be told; give the cache"
            )
        return positions(ids, mask)
    told, plain_BS = given.get("position_ids", given.get("cache_position")), positions(ids)
    if not isinstance(told, Tensor) or told.dim() > 2:  # several axes (images) say nothing of texts
        return plain_BS
    told_BS = (told if told.dim() == 2 else told[None]).to(ids.device).expand(len(ids), -1)
    if bool((told_BS[:, 0] > 0).any()):
        raise InputError(
            f"position ids begin at {int(told_BS[:, 0].max())}, yet there is neither a cache nor an attention mask: "
            "what stands before cannot be told; give the cache, or an attention mask"
        )
    begins_BS = torch.diff(told_BS, prepend=told_BS[:, :1] - 1) != 1
    return plain_BS - torch.where(begins_BS, plain_BS, 0).cummax(1).values
