"""Text to rows of token ids: split by document, shuffle, tokenise, pack.

One stream of rows serves every use. Documents are read in windows; a window is filtered to the part wanted, its
documents are shuffled, and blocks of them are tokenised, cut into rows, and the block's rows are shuffled. So a
request for few tokens still draws on many documents, a corpus of any size needs bounded memory, and the first rows
of a long request are exactly the rows of a short one.

Shuffles use only random.Random(str).random(), whose sequence Python keeps across versions and machines.
"""

import hashlib
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelora.data.corpus import Document
from saelora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
T = TypeVar("T")

Part = Literal["train", "validation", "all"]
WINDOW_CHARS = 32_000_000  # characters read before anything is emitted: bounds memory and what a hub must send
BLOCK_CHARS = 2_000_000  # characters tokenised at a time, about half a million tokens: rows are shuffled within a block
BATCH_DOCUMENTS = 64
SEPARATOR = -1  # stands where a token's document would, for the EOS between documents


@dataclass(frozen=True)
class Rows:
    """Packed rows of token ids on the CPU, int64, and the number of documents that they draw on."""

    input_ids: Int[Tensor, "n_rows context"]
    n_documents: int

    def fingerprint(self) -> str:
        """sha256 of the shape and the ids, the same on every machine."""
        ids = self.input_ids.numpy().astype("<i8")
        return hashlib.sha256(f"{ids.shape}".encode() + ids.tobytes()).hexdigest()


def in_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out, by a hash of its text alone.

    No seed enters, so every command, seed and order of reading agrees on what was held out.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def pack(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context: int,
    n_tokens: int | None,
    seed: int,
    validation_fraction: float = 0.05,
    part: Part = "train",
    shuffle_buffer: int = 10_000,
    n_embedded: int | None = None,
) -> Rows:
    """The first n_tokens // context rows (at least one) of `stream_rows`; all of one pass if n_tokens is None.

    Reading stops when they are there. A corpus that holds fewer gives what it has, with a warning.

    Args:
        n_embedded: ids from here on have no embedding in the model and are refused.

    Raises:
        InputError: the part holds less than one row, a token has no embedding, or an argument is out of range.
    """
    packer = _Packer(documents, tokenizer, context, seed, validation_fraction, part, shuffle_buffer, n_embedded)
    if n_tokens is not None and n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}, expected at least 1")
    wanted = None if n_tokens is None else max(1, n_tokens // context)
    rows: list[np.ndarray] = []
    sources: set[int] = set()
    for row, owners in packer.epoch(0):
        rows.append(row)
        sources.update(owners.tolist())
        if len(rows) == wanted:
            break
    if wanted is not None and len(rows) < wanted:
        logger.warning("asked for %d tokens, the %s part holds %d", wanted * context, part, len(rows) * context)
    return Rows(torch.from_numpy(np.stack(rows)).long(), len(sources - {SEPARATOR}))


def stream_rows(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context: int,
    seed: int,
    validation_fraction: float = 0.05,
    part: Part = "train",
    shuffle_buffer: int = 10_000,
    epochs: int | None = 1,
    n_embedded: int | None = None,
) -> Iterator[Int[Tensor, " context"]]:
    """Rows one by one, in bounded memory; every epoch reads the documents anew, in another order.

    Args:
        documents: anything that can be iterated once per epoch, such as a Corpus.
        shuffle_buffer: documents read ahead and shuffled together (fewer if they exceed WINDOW_CHARS).
        epochs: passes over the documents; None means without end.
        n_embedded: ids from here on have no embedding in the model and are refused.

    Raises:
        InputError: a pass holds less than one row, a token has no embedding, or an argument is out of range.
    """
    if epochs != 1 and iter(documents) is documents:
        raise TypeError("several epochs need documents that can be read again, such as a Corpus; got an iterator")
    packer = _Packer(documents, tokenizer, context, seed, validation_fraction, part, shuffle_buffer, n_embedded)
    epoch = 0
    while epochs is None or epoch < epochs:
        for row, _ in packer.epoch(epoch):
            yield torch.from_numpy(row).long()
        epoch += 1


@dataclass(frozen=True)
class _Packer:
    """The arguments of a stream of rows, checked, and one pass over it."""

    documents: Iterable[Document]
    tokenizer: Any
    context: int
    seed: int
    validation_fraction: float
    part: Part
    shuffle_buffer: int
    n_embedded: int | None

    def __post_init__(self) -> None:
        if self.context < 2:
            raise InputError(f"context is {self.context}, expected at least 2 tokens a row")
        if self.shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer is {self.shuffle_buffer}, expected at least 1 document")
        if not 0 <= self.validation_fraction < 1:
            raise InputError(f"validation fraction is {self.validation_fraction}, expected a number in [0, 1)")

    def epoch(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass: rows (int32 [context]), each with the ordinals of the documents its tokens are from."""
        rng = random.Random(f"saelora {self.seed} {epoch}")
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        body = self.context - len(bos)
        rest, rest_owner = np.empty(0, np.int32), np.empty(0, np.int64)  # what did not fill a row, and whose it is
        n_documents = n_tokens = 0
        any_row = False
        for texts in self._blocks(rng):
            streams = self._tokenise(texts)
            owners = [self._owners(n_documents + i, len(ids)) for i, ids in enumerate(streams)]
            n_documents, n_tokens = n_documents + len(texts), n_tokens + sum(map(len, streams))
            stream, owner = np.concatenate([rest, *streams]), np.concatenate([rest_owner, *owners])
            n_rows = len(stream) // body
            rest, rest_owner = stream[n_rows * body :], owner[n_rows * body :]
            for i in _shuffled(range(n_rows), rng):
                cut = slice(i * body, (i + 1) * body)
                any_row = True
                yield np.concatenate([np.array(bos, np.int32), stream[cut]]), owner[cut]
        if not any_row:
            raise InputError(
                f"the {self.part} part of the text holds {n_tokens} tokens in {n_documents} documents, one row needs "
                f"{body}: give more text or documents, a smaller context, or another validation fraction"
            )

    def _owners(self, document: int, n_ids: int) -> np.ndarray:
        owners = np.full(n_ids, document)
        if n_ids and self.tokenizer.eos_token_id is not None:
            owners[-1] = SEPARATOR
        return owners

    def _windows(self) -> Iterator[list[str]]:
        """Texts of the part wanted, as many at a time as are shuffled together. Limits count what is read, not kept."""
        kept: list[str] = []
        n_read = n_chars = 0
        for document in self.documents:
            n_read, n_chars = n_read + 1, n_chars + len(document.text)
            held_out = in_validation(document.text, self.validation_fraction)
            if self.part == "all" or held_out == (self.part == "validation"):
                kept.append(document.text)
            if n_read >= self.shuffle_buffer or n_chars >= WINDOW_CHARS:
                yield kept
                kept, n_read, n_chars = [], 0, 0
        yield kept

    def _blocks(self, rng: random.Random) -> Iterator[list[str]]:
        for window in self._windows():
            block: list[str] = []
            n_chars = 0
            for text in _shuffled(window, rng):
                block.append(text)
                n_chars += len(text)
                if n_chars >= BLOCK_CHARS:
                    yield block
                    block, n_chars = [], 0
            if block:
                yield block

    def _tokenise(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, closed by EOS where the tokenizer has one."""
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        streams = []
        for start in range(0, len(texts), BATCH_DOCUMENTS):
            batch = texts[start : start + BATCH_DOCUMENTS]
            encoded = self.tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
            streams += [np.array(ids + eos if ids else [], np.int32) for ids in encoded["input_ids"]]
        if self.n_embedded is not None:
            check_embedded(streams, self.tokenizer, self.n_embedded)
        return streams


def check_embedded(texts: Iterable[Sequence[int] | np.ndarray], tokenizer: Any, n_embedded: int) -> None:
    """Refuse token ids that the model has no row for.

    Raises:
        InputError: there is one; names it and both sizes.
    """
    highest = max((int(np.max(ids)) for ids in texts if len(ids)), default=0)
    if highest >= n_embedded:
        raise InputError(
            f"the text holds {tokenizer.convert_ids_to_tokens(highest)!r} (id {highest}), which the model has no "
            f"embedding for: the tokenizer has {len(tokenizer)} tokens, the embedding {n_embedded} rows; resize the "
            f"embedding with model.resize_token_embeddings and save the model, or take the token out of the text"
        )


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """A shuffled copy (Fisher-Yates), from `rng.random()` alone."""
    out = list(items)
    for i in range(len(out) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        out[i], out[j] = out[j], out[i]
    return out
