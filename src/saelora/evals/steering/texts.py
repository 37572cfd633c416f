"""Held-out text cut into short passages, in three sets that share no text: selection, tuning, test."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SHARES = {"selection": 1 / 2, "tuning": 1 / 6, "test": 1 / 3}
ENOUGH_DOCUMENTS = 60  # from here on whole documents go to one set; a few long ones are divided in stretches instead
STRETCH_CHARS = 1500  # and fewer where there is so little text that the sets would come out uneven
CHARS_PER_TOKEN = 4  # of English text, roughly: passages are cut by characters, then to their tokens
LEAST_TOKENS = 8
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


@dataclass(frozen=True)
class Text:
    """A text and its token ids, BOS in front where the tokenizer has one."""

    text: str
    ids: tuple[int, ...]


def order(text: str) -> bytes:
    """A hash that puts texts in an order of no meaning, the same on every machine."""
    return hashlib.sha256(b"steering " + text.encode("utf-8", "surrogatepass")).digest()


def apart(documents: Iterable[str], n_tokens: int) -> tuple[dict[str, list[str]], str]:
    """Passages of about ``n_tokens`` tokens for each of the three sets, and what was divided between these.

    Units go to the sets in the order of a hash: documents where there are at least ENOUGH_DOCUMENTS, else stretches of
    about STRETCH_CHARS characters. A passage that occurs twice is kept once, so that no text is in two sets.
    """
    whole, n_chars = list(documents), n_tokens * CHARS_PER_TOKEN
    by_document = len(whole) >= ENOUGH_DOCUMENTS
    stretch = max(2 * n_chars, min(STRETCH_CHARS, sum(map(len, whole)) // ENOUGH_DOCUMENTS))
    units = whole if by_document else [s for text in whole for s in cut(text, stretch)]
    units.sort(key=order)
    sets: dict[str, list[str]] = {}
    seen: set[str] = set()
    start = 0.0
    for name, share in SHARES.items():
        own = units[round(start * len(units)) : round((start + share) * len(units))]
        start += share
        sets[name] = list(_new(own, n_chars, seen))
    return sets, "documents" if by_document else f"stretches of about {stretch} characters"


def _new(units: Iterable[str], n_chars: int, seen: set[str]) -> Iterator[str]:
    for unit in units:
        for passage in cut(unit, n_chars):
            if passage not in seen:
                seen.add(passage)
                yield passage


def cut(text: str, n_chars: int) -> list[str]:
    """Consecutive pieces of at most n_chars characters, cut at the ends of sentences where these are near enough."""
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        for part in _short(" ".join(sentence.split()), n_chars):
            if pieces and len(pieces[-1]) + 1 + len(part) <= n_chars:
                pieces[-1] += " " + part
            else:
                pieces.append(part)
    return pieces


def _short(sentence: str, n_chars: int) -> Iterator[str]:
    """A sentence in parts of at most n_chars characters, cut between words where there are any."""
    while len(sentence) > n_chars:
        at = sentence.rfind(" ", 1, n_chars + 1)
        at = n_chars if at < 0 else at
        yield sentence[:at]
        sentence = sentence[at:].lstrip()
    if sentence:
        yield sentence


def tokenised(
    texts: Sequence[str], tokenizer: Any, n_tokens: int, *, least: int = LEAST_TOKENS, budget: int | None = None
) -> list[Text]:
    """Texts as token ids, cut to n_tokens (BOS not counted); those under ``least`` tokens are left out.

    Args:
        budget: texts are taken until they hold this many tokens.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found: list[Text] = []
    total = 0
    for start in range(0, len(texts), 64):
        if budget is not None and total >= budget:
            break
        batch = list(texts[start : start + 64])
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for text, ids in zip(batch, encoded["input_ids"], strict=True):
            if len(ids) >= least and (budget is None or total < budget):
                found.append(Text(text, (*bos, *ids[:n_tokens])))
                total += len(found[-1].ids)
    return found
