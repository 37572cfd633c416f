"""Whatever a .gguf file holds: the model that was written, or one line that says what is wrong; and nothing is left."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import made_model, metadata_of, tensors_of, write_gguf, write_shards

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from saelora.errors import InputError  # noqa: E402
from saelora.models.loading import load_model  # noqa: E402

MODEL = made_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=16)
TENSORS, METADATA = tensors_of(MODEL, "llama"), metadata_of(MODEL, "llama")
IDS = torch.randint(4, 260, (1, 12), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    LOGITS = MODEL(IDS).logits
KEYS = st.sampled_from(
    [*METADATA, "logit_scale", "expert_count", "attention.scale", "rope.scaling.type", "vocab_size", "x.y"]
)
VALUES = st.integers(0, 2**31) | st.floats(width=32, allow_nan=False) | st.booleans() | st.text(max_size=8) | st.none()


def loaded_or_line(path, monkeypatch):
    """The loaded model, or None where the file is refused; anything else that is raised is a fault."""
    cache = path.parent / "cache"
    monkeypatch.setenv("SAELORA_CACHE", str(cache))
    try:
        return load_model(str(path)).model
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert not list(cache.glob("converted/*"))
    return None


def assert_right_or_refused(path, monkeypatch):
    model = loaded_or_line(path, monkeypatch)
    if model is not None:
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, LOGITS, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, max_size=2),
    st.sets(st.sampled_from(sorted(TENSORS)), max_size=1),
    st.dictionaries(
        st.from_regex(r"blk\.[0-3]\.[a-z_]{3,8}\.(weight|bias)", fullmatch=True), st.integers(1, 8), max_size=1
    ),
)
def test_changed_metadata_and_tensors_are_refused_or_change_nothing_unseen(changed, less, more):
    metadata = {key: value for key, value in {**METADATA, **changed}.items() if value is not None}
    tensors = {name: tensor for name, tensor in TENSORS.items() if name not in less}
    tensors |= {name: np.ones(size, np.float32) for name, size in more.items()}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        path = write_gguf(Path(folder) / "tiny.gguf", tensors, "llama", metadata)
        model = loaded_or_line(path, monkeypatch)
    if model is not None:
        assert not less - {"output.weight"}
        assert set(more) <= set(TENSORS)
        given_keys = {key for key, value in changed.items() if value not in (METADATA.get(key), None, 0, False, "")}
        allowed = {"attention.layer_norm_rms_epsilon", "rope.freq_base", "context_length", "vocab_size", "logit_scale"}
        assert given_keys <= allowed | {"rope.scaling.type", "attention.scale"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.sampled_from(["cut", "garble", "lose", "swap"]), st.floats(0, 0.999), st.integers(0, 255))
def test_harmed_shards_are_refused(which, harm, share, value):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        paths = write_shards(Path(folder), TENSORS, "llama", METADATA)
        content = bytearray(paths[which].read_bytes())
        at = int(share * len(content))
        if harm == "cut":
            paths[which].write_bytes(content[:at])
        elif harm == "lose":
            paths[which].unlink()
        elif harm == "swap":
            paths[which].write_bytes(paths[which - 1].read_bytes())
        else:
            content[min(at, 400)] = value  # in the header: other bytes are weights, and any weights are a model
            paths[which].write_bytes(content)
        path = next(path for path in paths if path.is_file())
        model = loaded_or_line(path, monkeypatch)
        assert model is None or harm in ("garble", "cut")
        if model is not None and harm == "cut":
            pytest.fail("a file that ends early was taken for whole")
