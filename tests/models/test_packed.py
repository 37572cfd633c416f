"""A packed set of transcoders unpacks to what went in, to 4 bits, with the mean of every product kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file

import saelora
from saelora.errors import InputError
from saelora.models.assets import DEFAULT_TRANSCODERS, default_transcoders_file, resolve_asset
from saelora.models.packed import pack, unpacked

D, S = 64, 96
NAME = "layers.0.mlp_out"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAELORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {"W_enc": (D, S), "W_dec": (S, D), "W_skip": (D, D), "b_enc": (S,), "b_dec": (D,), "threshold": (S,)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def mean_read() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(D).astype(np.float32) * 3


def packed_and_unpacked(weights: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    pack({NAME: ({"d_in": D}, weights)}, {NAME: mean_read()}, folder / "set.gguf")
    place = unpacked(folder / "set.gguf") / NAME
    assert json.loads((place / "cfg.json").read_text()) == {"d_in": D}
    return {name: tensor.float().numpy() for name, tensor in load_file(place / "sae_weights.safetensors").items()}


def test_weights_come_back_to_four_bits(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = packed_and_unpacked(weights, tmp_path)
    assert found.keys() == weights.keys()
    for name in ("W_enc", "W_dec", "W_skip"):
        assert found[name].shape == weights[name].shape
        error = np.square(found[name] - weights[name]).mean() / np.square(weights[name]).mean()
        assert 1e-4 < error < 0.02, name  # uniform in steps of an eighth of a block's largest: 0.9 % of normal numbers
    assert np.allclose(found["threshold"], weights["threshold"], rtol=1 / 128)


def test_biases_take_back_what_rounding_makes_of_the_mean(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    found, mean = packed_and_unpacked(weights, tmp_path), mean_read()
    for of in (lambda w: mean @ w["W_enc"] + w["b_enc"], lambda w: w["W_skip"] @ mean + w["b_dec"]):
        kept, without = of(found), of({**found, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]})
        assert np.abs(kept - of(weights)).mean() < 0.1 * np.abs(without - of(weights)).mean()


def test_another_gguf_file_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("x", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="is a GGUF file of 'llama', expected 'saelora-transcoders'"):
        unpacked(tmp_path / "model.gguf")


def test_the_shipped_set_is_a_transcoder_for_every_layer_of_the_default_model() -> None:
    assert default_transcoders_file().stat().st_size <= 25e6
    folder = Path(resolve_asset(DEFAULT_TRANSCODERS))
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"layers.{i}.mlp_out" for i in range(30))
    found = saelora.load_sae(f"{DEFAULT_TRANSCODERS}/layers.7.mlp_out")
    assert (found.d_in, found.d_sae, str(found.hookpoint)) == (576, 960, "layers.7.mlp_out")
    assert found.architecture == "jumprelu_skip_transcoder"
    assert all(torch.isfinite(tensor).all() for tensor in found.sae.state_dict().values())
