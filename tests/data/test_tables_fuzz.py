"""Whatever bytes a text file holds: its texts, or one line that says what is wrong."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from saelora.data.tables import read_column  # noqa: E402
from saelora.errors import InputError  # noqa: E402

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(st.characters(codec="utf-8"))
PACK = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": lambda b: pa.compress(b, "zstd", asbytes=True)}
GARBLE = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)


def texts_or_line(content, label):
    """The texts, or None where the file is refused; anything else that is raised is a fault."""
    try:
        return list(read_column(io.BytesIO(content), label, "text"))
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert label in said
    return None


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.none() | TEXT, st.dictionaries(st.text(max_size=5).filter(lambda k: k != "text"), JSON))),
    st.sampled_from(sorted(PACK)),
    st.booleans(),
)
def test_json_lines_give_exactly_their_texts(rows, suffix, ascii_only):
    content = "".join(json.dumps({"text": text, **others}, ensure_ascii=ascii_only) + "\n" for text, others in rows)
    try:
        packed = PACK[suffix](content.encode())
    except UnicodeEncodeError:  # halves of surrogate pairs in other columns, which no file can hold unescaped
        return
    assert texts_or_line(packed, f"a{suffix}") == [text for text, _ in rows]


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([*sorted(PACK), ".parquet"]))
def test_arbitrary_bytes_are_refused_in_one_line_or_are_text(content, suffix):
    texts = texts_or_line(content, f"a{suffix}")
    assert texts is None or all(text is None or isinstance(text, str) for text in texts)


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), GARBLE, st.sampled_from([*sorted(PACK), ".parquet"]))
def test_damaged_files_are_refused_in_one_line_or_are_text(texts, garble, suffix):
    if suffix == ".parquet":
        out = io.BytesIO()
        pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), out)
        content = bytearray(out.getvalue())
    else:
        content = bytearray(PACK[suffix]("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    for at, value in garble:
        content[at % len(content)] = value
    found = texts_or_line(bytes(content), f"a{suffix}")
    assert found is None or all(text is None or isinstance(text, str) for text in found)
