import gzip
import json

import pytest

from saelora.data.corpus import open_corpus
from saelora.errors import InputError


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(corpus):
    return [document.text for document in corpus.documents()]


def message(data, **options):
    with pytest.raises(InputError) as caught:
        list(open_corpus(str(data), **options).documents())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_txt_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert texts(open_corpus(str(tmp_path / "a.txt"))) == ["one\n\ntwo\n"]


def test_folder_mixes_kinds_sorted_by_path_and_skips_hidden_and_other_files(tmp_path):
    from datasets import Dataset

    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "z.txt").write_text("z")
    (tmp_path / "sub" / "m.txt").write_text("m")
    (tmp_path / ".git" / "h.txt").write_text("hidden")
    (tmp_path / "notes.md").write_text("other")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b0"}, {"text": "b1"}])
    Dataset.from_dict({"text": ["p0", "p1"]}).to_parquet(tmp_path / "c.parquet")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as handle:
        handle.write('{"text": "d0"}\n')
    corpus = open_corpus(str(tmp_path))
    assert texts(corpus) == ["b0", "b1", "p0", "p1", "d0", "m", "z"]
    assert [d.source for d in corpus][:2] == ["b.jsonl:0", "b.jsonl:1"]
    assert [d.source for d in corpus][-2:] == ["sub/m.txt", "z.txt"]


def test_corpus_can_be_read_again_in_the_same_order(tmp_path):
    corpus = open_corpus(write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(50)]))
    assert texts(corpus) == texts(corpus) == [str(i) for i in range(50)]


def test_rows_and_files_without_text_are_left_out(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": None}, {"text": "  \n"}, {"text": "y"}])
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.jsonl").write_text("")
    corpus = open_corpus(str(tmp_path))
    assert texts(corpus) == ["x", "y"]
    assert [d.source for d in corpus] == ["a.jsonl:0", "a.jsonl:3"]


def test_another_text_column_is_read(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "n": 1}])
    assert texts(open_corpus(path, text_column="body")) == ["x"]


def test_missing_text_column_names_the_columns_present(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "n": 1}])
    assert "no column 'text', only 'body', 'n'" in message(path)


def test_text_column_of_numbers_is_refused(tmp_path):
    assert "holds int" in message(write_jsonl(tmp_path / "a.jsonl", [{"text": 3}]))


def test_fingerprint_follows_content_and_names_but_not_the_place(tmp_path):
    for name, inside in [("one", "x"), ("two", "x"), ("three", "y")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(inside)
    one, two, three = (open_corpus(str(tmp_path / name)).describe() for name in ("one", "two", "three"))
    assert one["fingerprint"] == two["fingerprint"] != three["fingerprint"]
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    assert open_corpus(str(tmp_path / "two")).fingerprint != one["fingerprint"]
    assert json.loads(json.dumps(one))["name"] == str(tmp_path / "one")


def test_undecodable_text_is_refused_with_the_byte_and_a_remedy(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    assert "not UTF-8 text (byte 3" in message(tmp_path / "a.txt")


def test_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert texts(open_corpus(str(tmp_path / "a.txt"))) == ["abc"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text("")
    assert "holds no text" in message(tmp_path / name)


def test_empty_folder_is_refused(tmp_path):
    assert "no file that can be read" in message(tmp_path)


@pytest.mark.parametrize("name", ["missing.txt", "missing/", "./missing"])
def test_missing_path_is_refused_without_asking_the_hub(tmp_path, name):
    assert "does not exist" in message(f"{tmp_path}/{name}")


def test_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    assert "not a kind of file" in message(tmp_path / "a.docx")


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.parquet", "bad.jsonl.gz"])
def test_damaged_table_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"text": "x"}\n{oops\n')
    assert "cannot be read" in message(tmp_path / name)


@pytest.mark.parametrize("option", [{"split": "test"}, {"subset": "en"}, {"revision": "main"}])
def test_hub_options_are_refused_for_local_data(tmp_path, option):
    (tmp_path / "a.txt").write_text("x")
    assert "is local" in message(tmp_path / "a.txt", **option)


def test_hub_dataset_without_network_is_one_line_with_a_remedy(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "cannot be opened as a hub dataset" in message("nobody/no-such-dataset-here")
