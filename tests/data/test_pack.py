"""The tokenizer here has one token per word, so that rows can be read as text."""

import hashlib
import logging
from itertools import islice, pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saelora.data import pack as pack_module
from saelora.data.corpus import Document, open_corpus
from saelora.data.pack import in_validation, pack, stream_rows
from saelora.errors import InputError
from saelora.models.assets import DEFAULT_DATA

N_DOCUMENTS = 60
BOS, EOS = 0, 1


def make_tokenizer(bos=True, eos=True):
    words = ["<bos>", "<eos>"] + [f"d{i}w{j}" for i in range(N_DOCUMENTS) for j in range(40)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<bos>" if bos else None, "eos_token": "<eos>" if eos else None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_documents(n=N_DOCUMENTS):
    """Documents of 5 to 39 words; word j of document i is a token that occurs nowhere else."""
    return [Document(" ".join(f"d{i}w{j}" for j in range(5 + 7 * i % 35)), f"doc{i}") for i in range(n)]


def document_of(token):
    return (token - 2) // 40


def documents_in(input_ids):
    return {document_of(int(t)) for t in input_ids.flatten() if t > EOS}


def assert_words_follow_each_other(rows):
    n_words = [len(document.text.split()) for document in make_documents()]
    for token, following in (pair for row in rows for pair in pairwise(row)):
        i, j = document_of(token), (token - 2) % 40
        if token == EOS:
            assert (following - 2) % 40 == 0, "EOS is followed by the middle of a document"
        else:
            assert following == (EOS if j == n_words[i] - 1 else token + 1)


def full(tokenizer, **options):
    options = {"context": 8, "n_tokens": None, "seed": 0, **options}
    return pack(make_documents(), tokenizer, **options)


# SPEC 2.3
def test_every_row_is_bos_then_stream_tokens(tokenizer):
    rows = full(tokenizer)
    assert rows.input_ids.dtype == torch.long
    assert (rows.input_ids[:, 0] == BOS).all()
    assert (rows.input_ids[:, 1:] != BOS).all()


# SPEC 2.3
def test_rows_laid_end_to_end_are_the_documents_with_eos_between(tokenizer):
    """Undo the shuffle of rows by following each document's words, and find every word once and in order."""
    rows = full(tokenizer, part="all").input_ids[:, 1:].tolist()
    assert_words_follow_each_other(rows)
    flat = [token for row in rows for token in row if token != EOS]
    assert len(flat) == len(set(flat))
    total = sum(len(document.text.split()) for document in make_documents()) + N_DOCUMENTS
    assert len(rows) == total // 7


def test_tokenizer_without_bos_gives_rows_of_stream_tokens_only():
    rows = full(make_tokenizer(bos=False), part="all").input_ids
    assert (rows != BOS).all()
    assert len(rows) == (sum(len(d.text.split()) for d in make_documents()) + N_DOCUMENTS) // 8


def test_tokenizer_without_eos_puts_nothing_between_documents():
    rows = full(make_tokenizer(eos=False), part="all").input_ids
    assert (rows != EOS).all()
    assert len(rows) == sum(len(d.text.split()) for d in make_documents()) // 7


def test_same_seed_gives_the_same_rows_everywhere(tokenizer):
    """A fixed value: a change means that rows differ between versions or machines."""
    fingerprint = full(tokenizer).fingerprint()
    assert fingerprint == full(tokenizer).fingerprint()
    assert fingerprint[:16] == "386833f787c89d5b"
    assert fingerprint != full(tokenizer, seed=1).fingerprint()


def test_rows_of_a_small_request_begin_those_of_a_large_one(tokenizer):
    few, many = full(tokenizer, n_tokens=80), full(tokenizer, n_tokens=320)
    assert few.input_ids.shape == (10, 8)
    assert torch.equal(few.input_ids, many.input_ids[:10])


def test_small_request_draws_on_many_documents_and_counts_them(tokenizer):
    rows = full(tokenizer, n_tokens=160)
    assert len(documents_in(rows.input_ids)) >= 12  # in order, 140 tokens would be about 7 documents
    assert rows.n_documents == len(documents_in(rows.input_ids))


# SPEC 2.4
def test_train_and_validation_share_no_document_and_cover_all(tokenizer):
    train = full(tokenizer, part="train", validation_fraction=0.3, context=2)
    held_out = full(tokenizer, part="validation", validation_fraction=0.3, context=2, seed=9)
    a, b = documents_in(train.input_ids), documents_in(held_out.input_ids)
    assert len(b) > 5
    assert not a & b
    assert len(a | b) == N_DOCUMENTS


def test_held_out_share_is_near_the_fraction_and_grows_with_it():
    texts = [f"text {i}" for i in range(4000)]
    small, large = ({t for t in texts if in_validation(t, f)} for f in (0.05, 0.2))
    assert 140 < len(small) < 260
    assert 700 < len(large) < 900
    assert small < large
    assert not any(in_validation(t, 0.0) for t in texts)


def test_too_little_text_says_how_much_there_was_and_how_much_a_row_needs(tokenizer):
    with pytest.raises(InputError, match=r"holds 6 tokens in 1 documents, one row needs 15"):
        pack(make_documents(1), tokenizer, context=16, n_tokens=None, seed=0, part="all")


def test_short_corpus_gives_what_it_has_with_a_warning(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        rows = full(tokenizer, n_tokens=10**6)
    assert torch.equal(rows.input_ids, full(tokenizer).input_ids)
    assert "asked for 1000000 tokens" in caplog.text


@pytest.mark.parametrize(
    "options", [{"context": 1}, {"n_tokens": 0}, {"validation_fraction": 1.0}, {"shuffle_buffer": 0}]
)
def test_arguments_out_of_range_are_refused(tokenizer, options):
    with pytest.raises(InputError):
        full(tokenizer, **options)


def test_small_request_does_not_read_the_whole_corpus(tokenizer, monkeypatch):
    monkeypatch.setattr(pack_module, "WINDOW_CHARS", 500)
    read = []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield make_documents()[i % N_DOCUMENTS]

    assert len(pack(endless(), tokenizer, context=8, n_tokens=80, seed=0).input_ids) == 10
    assert len(read) < 20


@pytest.mark.parametrize("buffer", [1, 7, 10_000])
def test_window_and_block_borders_lose_and_repeat_no_token(tokenizer, monkeypatch, buffer):
    monkeypatch.setattr(pack_module, "BLOCK_CHARS", 300)
    input_ids = full(tokenizer, part="all", shuffle_buffer=buffer).input_ids[:, 1:]
    assert_words_follow_each_other(input_ids.tolist())
    rows = input_ids.flatten().tolist()
    words = [token for token in rows if token != EOS]
    assert len(words) == len(set(words))
    assert len(rows) // 7 == (sum(len(d.text.split()) for d in make_documents()) + N_DOCUMENTS) // 7


def test_stream_gives_the_rows_of_pack_then_another_order_each_epoch(tokenizer):
    once = full(tokenizer).input_ids
    rows = list(stream_rows(make_documents(), tokenizer, context=8, seed=0, epochs=2))
    first, second = torch.stack(rows[: len(once)]), torch.stack(rows[len(once) :])
    assert torch.equal(first, once)
    assert not torch.equal(first, second)
    assert documents_in(first) == documents_in(second)


def test_stream_without_end_goes_on(tokenizer):
    n = len(full(tokenizer).input_ids)
    rows = stream_rows(make_documents(), tokenizer, context=8, seed=0, epochs=None)
    assert len(list(islice(rows, 3 * n))) == 3 * n


def test_several_epochs_over_an_iterator_are_refused(tokenizer):
    with pytest.raises(TypeError, match="read again"):
        next(stream_rows(iter(make_documents()), tokenizer, context=8, seed=0, epochs=2))


def test_corpus_is_packed_as_it_stands(tokenizer, tmp_path):
    for i, document in enumerate(make_documents()):
        (tmp_path / f"{i:03}.txt").write_text(document.text)
    packed = pack(open_corpus(str(tmp_path)), tokenizer, context=8, n_tokens=None, seed=0)
    assert packed.fingerprint() == full(tokenizer).fingerprint()


@pytest.mark.real
def test_held_out_speeches_are_the_same_eleven_everywhere():
    try:
        corpus = open_corpus(DEFAULT_DATA)
    except InputError as error:
        pytest.skip(f"the default text is not at hand: {error}")
    speeches = list(corpus.documents())
    held_out = [speech.source for speech in speeches if in_validation(speech.text, 0.05)]
    assert len(speeches) == 249
    assert len(held_out) == 11
    assert hashlib.sha256("\n".join(held_out).encode()).hexdigest()[:16] == "a36cdcac81912d8a"


def test_token_without_an_embedding_is_refused_with_both_sizes(tokenizer):
    n = len(tokenizer)
    last = max(int(full(tokenizer, part="all").input_ids.max()), EOS)
    assert len(full(tokenizer, part="all", n_embedded=last + 1).input_ids)
    with pytest.raises(InputError, match=rf"\(id {last}\).* tokenizer has {n} tokens, the embedding {last} rows"):
        full(tokenizer, part="all", n_embedded=last)


def test_streamed_token_without_an_embedding_is_refused(tokenizer):
    with pytest.raises(InputError, match="no embedding"):
        list(stream_rows(make_documents(), tokenizer, context=8, seed=0, n_embedded=100))
