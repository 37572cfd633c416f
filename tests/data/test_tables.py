"""One column of a table: what other columns hold, and how that changes along the file, must not matter."""

import decimal
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saelora.data import tables
from saelora.data.corpus import open_corpus
from saelora.data.tables import read_column
from saelora.errors import InputError


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(content, label="a.jsonl", column="text"):
    return list(read_column(io.BytesIO(content), label, column))


def message(content, **options):
    with pytest.raises(InputError) as caught:
        read(content, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def test_other_columns_may_change_their_type_at_any_row():
    others = [None, 1, "one", {"a": 1}, {"a": "b", "c": []}, [1, "x"], 2.5, True, "2020-01-01T00:00:00", 10**400]
    rows = [{"text": str(i), "other": other} for i, other in enumerate(others)]
    assert read(lines(*rows)) == [str(i) for i in range(len(others))]


def test_other_columns_may_come_and_go():
    assert read(lines({"text": "a", "x": 1}, {"y": 2}, {"text": "b"})) == ["a", None, "b"]


def test_text_that_looks_like_a_date_is_text():
    assert read(lines({"text": "2020-01-01 10:00:00"})) == ["2020-01-01 10:00:00"]


def test_text_column_that_first_comes_late_is_read():
    assert read(lines(*[{"x": 1}] * 1000, {"text": "late"}))[-1] == "late"


def test_file_without_the_column_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(tables, "_PATIENCE_BYTES", 100)
    content = io.BytesIO(lines(*[{"body": "x"}] * 10_000))
    with pytest.raises(InputError, match="no column 'text', only 'body'"):
        list(read_column(content, "a.jsonl", "text"))
    assert content.tell() < 20_000


def test_blank_lines_and_windows_line_ends_are_no_rows():
    assert read(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}') == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', "after 1 rows: line 2 is not JSON"),
        (b'["a", "b"]\n', "line 1 is JSON of another kind (list), expected one object a line"),
        (b'{"text": "caf\xe9"}\n', "can't decode byte 0xe9"),
        (b'{"text": "\\ud83d alone"}\n', "line 1 holds half of a surrogate pair"),
        (b"[" * 100_000 + b"\n", "cannot be read after 0 rows"),
        (b'{"text": ["a"]}\n', "row 0: column 'text' holds list"),
        (b'{"text": "a"}\n{"text": 7}\n', "row 1: column 'text' holds int"),
        (b"{}\n{}\n", "no column 'text', only empty rows"),
    ],
)
def test_line_that_is_no_row_is_refused_with_its_place(content, expected):
    assert expected in message(content)


def test_surrogate_pairs_are_characters():
    assert read(b'{"text": "\\ud83d\\ude00"}\n') == ["\N{GRINNING FACE}"]


def test_gzip_and_zstandard_are_unpacked():
    content = lines({"text": "a"}, {"text": "b"})
    assert read(gzip.compress(content), "a.jsonl.gz") == ["a", "b"]
    assert read(pa.compress(content, "zstd", asbytes=True), "a.jsonl.zst") == ["a", "b"]


def test_several_zstandard_frames_are_one_file():
    frames = [pa.compress(lines({"text": text}), "zstd", asbytes=True) for text in "abc"]
    assert read(b"".join(frames), "a.jsonl.zst") == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_file_that_ends_early_is_refused_not_shortened(suffix):
    content = lines(*[{"text": f"{i} {i * i}"} for i in range(2000)])
    packed = gzip.compress(content) if suffix == ".gz" else pa.compress(content, "zstd", asbytes=True)
    for share in (0.3, 0.9):
        assert "cannot be read after" in message(packed[: int(share * len(packed))], label="a.jsonl" + suffix)


def test_parquet_columns_of_every_other_type_do_not_matter():
    others = {
        "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
        "struct": pa.array([{"x": [1]}, None]),
        "decimal": pa.array([decimal.Decimal("1.5"), None]),
        "time": pa.array([1, 2], pa.time64("ns")),
        "duration": pa.array([1, 2], pa.duration("s")),
        "fixed": pa.array([b"ab", b"cd"], pa.binary(2)),
        "nothing": pa.nulls(2),
    }
    assert read(parquet(pa.table({"text": ["one", "two"], **others})), "a.parquet") == ["one", "two"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_of_every_string_type_is_read_in_order(kind):
    texts = [str(i) if i % 7 else None for i in range(5000)]
    column = pa.array(texts, pa.string()).cast(kind)
    assert read(parquet(pa.table({"text": column}), row_group_size=700), "a.parquet") == texts


def test_parquet_column_names_with_dots_are_names():
    table = pa.table({"a.b": ["dotted"], "a": pa.array([{"b": "nested"}])})
    assert read(parquet(table), "a.parquet", column="a.b") == ["dotted"]


@pytest.mark.parametrize(
    ("column", "expected"), [("n", "holds int"), ("raw", "holds bytes"), ("absent", "only 'n', 'raw'")]
)
def test_parquet_column_that_is_no_text_is_refused(column, expected):
    table = pa.table({"n": [1], "raw": pa.array([b"x"])})
    assert expected in message(parquet(table), label="a.parquet", column=column)


def test_corpus_reads_the_column_alone(tmp_path):
    table = pa.table({"body": ["x"], "tags": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))})
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    (tmp_path / "b.jsonl").write_bytes(lines({"body": "y", "n": 1}, {"body": "z", "n": "one"}))
    corpus = open_corpus(str(tmp_path), text_column="body")
    assert [(d.text, d.source) for d in corpus] == [("x", "a.parquet:0"), ("y", "b.jsonl:0"), ("z", "b.jsonl:1")]
