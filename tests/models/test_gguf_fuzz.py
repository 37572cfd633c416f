"""Whatever a GGUF file holds, it is read whole or refused in one line, within bounded memory."""

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguf_files import made_model, metadata_of, tensors_of, write_gguf
from saelora.errors import InputError
from saelora.models.gguf_file import read_gguf
from saelora.models.loading import load_model

MEMORY = 1 << 30  # bytes beyond what the process has mapped; the model takes some thousands
MODEL = made_model("llama")
N_WEIGHTS = sum(map(torch.numel, MODEL.parameters()))
METADATA = metadata_of(MODEL, "llama")
EXTREME = [0, 1, 2, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
NUMBERS = st.one_of(st.sampled_from([0, 1, 2, 3, 5, 64, 2**30, 2**31 - 1, 2**32 - 1, -1]), st.floats(width=32))
VALUES = st.one_of(NUMBERS, st.booleans(), st.text(max_size=5), st.lists(st.integers(0, 2**31 - 1), max_size=3))
BOUNDED = {"deadline": None, "derandomize": True, "database": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module", autouse=True)
def bounded(folder):
    """Whatever asks for more memory than MEMORY fails with MemoryError, which is no InputError."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELORA_CACHE", str(folder / "cache"))
        load_model(str(write_gguf(folder / "whole.gguf", tensors_of(MODEL, "llama"), "llama", METADATA)))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
        yield
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_or_refused(path):
    try:
        model = load_model(str(path)).model
    except InputError as error:
        said = str(error)
    else:
        said = "" if sum(map(torch.numel, model.parameters())) == N_WEIGHTS else "parts of it"
    assert said == "" or (path.name in said and "\n" not in said)


def header_end(path):
    return min(int(tensor.data_offset) for tensor in read_gguf([path]).tensors.values())


@settings(**BOUNDED, max_examples=20)
@given(st.dictionaries(st.sampled_from([*METADATA, "attention.key_length", "vocab_size"]), VALUES, max_size=2))
@example({})
def test_any_value_in_the_metadata_is_read_or_refused(folder, changes):
    path = write_gguf(folder / "changed.gguf", tensors_of(MODEL, "llama"), "llama", {**METADATA, **changes})
    read_or_refused(path)


@settings(**BOUNDED, max_examples=40)
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(EXTREME), st.sampled_from(["<B", "<I", "<Q"]))
def test_any_number_anywhere_in_the_header_is_read_or_refused(folder, place, number, form):
    content = bytearray((folder / "whole.gguf").read_bytes())
    width = struct.calcsize(form)
    at = int(place * header_end(folder / "whole.gguf"))
    content[at : at + width] = struct.pack(form, number % 256**width)
    (folder / "overwritten.gguf").write_bytes(content)
    read_or_refused(folder / "overwritten.gguf")


@settings(**BOUNDED, max_examples=20)
@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
def test_file_that_ends_anywhere_is_refused(folder, place):
    content = (folder / "whole.gguf").read_bytes()
    (folder / "short.gguf").write_bytes(content[: int(place * (len(content) - 32))])
    with pytest.raises(InputError, match="damaged or incomplete"):
        load_model(str(folder / "short.gguf"))


def test_list_that_is_longer_than_the_file_is_refused_where_readers_would_go_on_for_ever(folder):
    metadata = {**METADATA, "rope.dimension_sections": [1, 2, 3, 4]}
    path = write_gguf(folder / "list.gguf", tensors_of(MODEL, "llama"), "llama", metadata)
    content = path.read_bytes()
    at = content.index(b"rope.dimension_sections") + len("rope.dimension_sections") + 8
    assert struct.unpack_from("<Q", content, at) == (4,)
    path.write_bytes(content[:at] + struct.pack("<Q", 2**40) + content[at + 8 :])
    with pytest.raises(InputError, match=r"llama.rope.dimension_sections ends beyond the file"):
        load_model(str(path))


def test_shapes_whose_product_wraps_around_are_refused(folder):
    path = write_gguf(folder / "wrap.gguf", {"token_embd.weight": np.ones((4, 4), np.float32)}, "llama", METADATA)
    content = path.read_bytes()
    at = content.index(b"token_embd.weight") + len("token_embd.weight") + 4
    path.write_bytes(content[:at] + struct.pack("<QQ", 2**33, 2**33) + content[at + 16 :])
    with pytest.raises(InputError, match=r"token_embd.weight ends beyond the file"):
        load_model(str(path))
