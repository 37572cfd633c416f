"""Whether a tokenizer's ids are ones that the model embeds: an id without a row is an IndexError, or a GPU's end."""

import logging
from typing import Any

from saelora.errors import InputError

logger = logging.getLogger(__name__)
_MOST_PADDING = 0.1  # of an embedding's rows: tables are rounded up to a multiple of 64 to 512, never by so much


def n_embedded(model: Any) -> int:
    """Ids that the model has a row for, going in and coming out: 0 to n - 1."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(int(table.weight.shape[0]) for table in tables if table is not None)


def check_tokenizer(tokenizer: Any, model: Any, ref: str) -> None:
    """Refuse a tokenizer whose words, or whose BOS, EOS or padding token, the model has no embedding for.

    Added tokens beyond the table are borne: some published models have them, for images, and no text needs them.
    Where a text does hold one, packing refuses it.

    Raises:
        InputError: such a token, a tokenizer without words, or one that cannot turn text into tokens and back.
    """
    _try_out(tokenizer, ref)
    n_rows, n_tokens = n_embedded(model), len(tokenizer)
    sizes = f"its tokenizer has {n_tokens} tokens, its embedding {n_rows} rows"
    for role in ("bos", "eos", "pad"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None and index >= n_rows:
            raise InputError(
                f"model {ref} has no embedding for its {role} token {getattr(tokenizer, f'{role}_token')!r} (id "
                f"{index}): {sizes}; resize the embedding with model.resize_token_embeddings and save the model, or "
                f"take the token out of the tokenizer"
            )
    added = set(tokenizer.get_added_vocab().values())
    words = set(tokenizer.get_vocab().values()) - added
    if not words:
        raise InputError(f"model {ref} comes with a tokenizer that has no words: save its tokenizer files beside it")
    if max(words) >= n_rows:
        raise InputError(
            f"model {ref} does not go with its tokenizer: {sizes}; put the model's own tokenizer files beside it"
        )
    if max(words | added) + 1 < (1 - _MOST_PADDING) * n_rows:
        logger.warning("model %s: %s; is it another model's tokenizer?", ref, sizes)


def _try_out(tokenizer: Any, ref: str) -> None:
    """Encode and decode the empty text: what transformers takes unchecked from a tokenizer's files fails in use."""
    try:
        ids = tokenizer([""], add_special_tokens=False, return_attention_mask=False)["input_ids"][0]
        tokenizer.decode(ids)
    except Exception as error:
        raise InputError(
            f"model {ref} comes with a tokenizer that cannot encode a text ({type(error).__name__}: {error}): put the "
            "model's own tokenizer files beside it"
        ) from error
