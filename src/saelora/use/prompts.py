"""What a user gives a model to read -> token ids, padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from saelora.errors import InputError, on_one_line

Messages = Sequence[dict[str, Any]]
Prompt = str | Messages | Sequence[int] | Tensor


@dataclass(frozen=True)
class Prompts:
    """Several prompts in one batch; ``alone``: it was one, not a list of one."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    alone: bool


def check_template(tokenizer: Any, model: str) -> None:
    """Raise InputError where a tokenizer does not know how its model is given chats."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer of {model} has no chat template, so that it cannot be talked with: give it text instead "
            "(saelora generate), or take a model that was tuned to chat"
        )


def encode(tokenizer: Any, given: Prompt | Sequence[Prompt], n_embedded: int, model: str) -> Prompts:
    """Token ids of a prompt or of several.

    Text begins with BOS where the tokenizer has one, as the rows of every run do (once: text may bring its own). Chat
    messages are what the tokenizer's template makes of them, ending where the answer begins. Ids are taken as they are.

    Args:
        n_embedded: token ids that the model has a row for.
        model: named in messages.

    Raises:
        InputError: nothing to read, or no chat template.
    """
    alone = _is_one(given)
    prompts: list[Any] = [given] if alone else list(given)
    rows = [_ids(tokenizer, prompt, model) for prompt in prompts]
    if not rows or any(not row for row in rows):
        raise InputError("the prompt is empty: give it some text")
    if bad := next((i for row in rows for i in row if not 0 <= i < n_embedded), None):
        raise InputError(f"token id {bad} is not one of the model's {n_embedded:,}")
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return Prompts(ids, mask, alone)


def _is_one(given: Any) -> bool:
    if isinstance(given, str):
        return True
    if isinstance(given, Tensor):
        return given.dim() == 1
    if not isinstance(given, Sequence) or not given:
        raise InputError(f"the prompt is {type(given).__name__}, expected text, chat messages, token ids, or a list")
    return isinstance(given[0], dict | int)


def _ids(tokenizer: Any, prompt: Any, model: str) -> list[int]:
    if isinstance(prompt, str):
        return _of_text(tokenizer, prompt)
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    if all(isinstance(each, int) and not isinstance(each, bool) for each in prompt):
        return list(prompt)
    if all(isinstance(each, dict) for each in prompt):
        return _of_chat(tokenizer, list(prompt), model)
    raise InputError("a prompt is neither text nor chat messages ([{'role': 'user', 'content': ...}]) nor token ids")


def _of_text(tokenizer: Any, text: str) -> list[int]:
    if not text:
        return []
    ids = _tokens(tokenizer, text)
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _of_chat(tokenizer: Any, messages: list[dict[str, Any]], model: str) -> list[int]:
    check_template(tokenizer, model)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs, and raise what they like
        raise InputError(f"the chat template of {model} refuses these messages: {on_one_line(error)}") from error
    return _tokens(tokenizer, text)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt has half a character at {error.start} ({text[error.start]!r}), which is no text: leave it "
            "out, or read it as UTF-8"
        ) from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
