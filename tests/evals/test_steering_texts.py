"""Texts for steering: sets that are apart, passages that are whole, and files that users get wrong."""

import json

import pytest

from saelora.errors import InputError
from saelora.evals.steering.texts import ENOUGH_DOCUMENTS, SHARES, apart, cut, tokenised
from saelora.evals.steering.user_texts import read_user_texts

PROSE = " ".join(f"Sentence number {i} says something about item {i * 7}." for i in range(400))


class Words:
    """One token a character, and BOS."""

    bos_token_id = 1

    def __call__(self, texts, **options):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def test_passages_are_the_text_in_order_and_cut_at_sentence_ends():
    pieces = cut(PROSE, 120)
    assert " ".join(pieces) == PROSE
    assert all(len(piece) <= 120 and piece.endswith(".") for piece in pieces)


@pytest.mark.parametrize("text", ["x" * 1000, "word " * 200, "語" * 500, "", " \n ", "a\n\nb"])
def test_text_without_sentences_is_cut_too(text):
    pieces = cut(text, 50)
    assert all(0 < len(piece) <= 50 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@pytest.mark.parametrize("n_documents", [1, 5, ENOUGH_DOCUMENTS + 20])
def test_sets_share_no_text_and_have_their_shares(n_documents):
    documents = [" ".join(f"Document {d} sentence {i} goes on." for i in range(300)) for d in range(n_documents)]
    sets, how = apart(documents, 16)
    assert list(sets) == list(SHARES)
    everything = [passage for passages in sets.values() for passage in passages]
    assert len(set(everything)) == len(everything)
    for name, share in SHARES.items():
        assert len(sets[name]) / len(everything) == pytest.approx(share, abs=0.1)
    assert how.startswith("documents" if n_documents > ENOUGH_DOCUMENTS else "stretches")
    if n_documents > ENOUGH_DOCUMENTS:
        of = {name: {passage.split()[1] for passage in passages} for name, passages in sets.items()}
        assert not of["selection"] & of["tuning"]
        assert not of["selection"] & of["test"]
        assert not of["tuning"] & of["test"]


def test_a_passage_that_is_repeated_everywhere_is_in_one_set_only():
    refrain = "Fellow citizens of the Senate and of the House of Representatives assembled here today. "
    documents = [refrain + f"This is what document {i} alone has got to say to you. " for i in range(100)]
    sets, _ = apart([document * 3 for document in documents], 20)
    everything = [passage for passages in sets.values() for passage in passages]
    assert len(set(everything)) == len(everything)


def test_sets_do_not_hang_on_the_order_of_documents():
    documents = [f"Document {d} is short. It has two sentences." for d in range(100)]
    assert apart(documents, 16) == apart(documents[::-1], 16)


def test_token_ids_begin_with_bos_and_end_in_time():
    texts = tokenised(["abcdefghijkl", "short", "mnopqrstuvwxyz"], Words(), 10)
    assert [text.ids for text in texts] == [(1, *map(ord, "abcdefghij")), (1, *map(ord, "mnopqrstuv"))]
    assert len(tokenised(["abcdefghij"] * 9, Words(), 10, budget=22)) == 2


def jsonl(tmp_path, *rows):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_given_texts_keep_their_set_and_latent(tmp_path):
    path = jsonl(tmp_path, {"text": "a", "set": "test", "latent": 3}, "", {"text": "b", "set": "tuning", "more": 1})
    assert [(g.text, g.set, g.latent) for g in read_user_texts(path)] == [("a", "test", 3), ("b", "tuning", None)]


def test_texts_without_a_set_are_divided_one_to_two_the_same_each_time(tmp_path):
    path = jsonl(tmp_path, *({"text": f"text number {i}"} for i in range(600)))
    given = read_user_texts(path)
    assert sum(g.set == "tuning" for g in given) == pytest.approx(200, abs=40)
    assert {g.text: g.set for g in given} == {
        g.text: g.set
        for g in read_user_texts(jsonl(tmp_path, *({"text": f"text number {i}"} for i in reversed(range(600)))))
    }


def test_a_repeated_text_counts_once(tmp_path):
    assert len(read_user_texts(jsonl(tmp_path, {"text": "a"}, {"text": "a"}))) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('["text"]', "list"),
        ("null", "NoneType"),
        ('"text"', "str"),
        ("{}", "no text"),
        ('{"text": 3}', "no text"),
        ('{"text": "  "}', "no text"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": "b", "set": "train"}', "'train'"),
        ('{"text": "b", "set": ["test"]}', "expected tuning or test"),
        ('{"text": "b", "latent": "3"}', "'3'"),
        ('{"text": "b", "latent": true}', "True"),
        ('{"text": "b", "latent": -1}', "-1"),
        ('{"text": "b", "latent": 1e999}', "inf"),
        ('{"text": "b", "latent": ' + "9" * 5000 + "}", "no JSON"),
        ('{"text": "a", "set": "tuning"}', "one set only"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path, line, says):
    with pytest.raises(InputError) as error:
        read_user_texts(jsonl(tmp_path, {"text": "a", "set": "test"}, line))
    assert "texts.jsonl line 2" in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe\x00"])
def test_a_file_without_texts_is_refused(tmp_path, content):
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"texts\.jsonl"):
        read_user_texts(path)


def test_a_folder_is_no_file_of_texts(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_user_texts(tmp_path)
