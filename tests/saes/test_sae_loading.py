"""What load_sae promises whatever the format: frozen, on dtype, fingerprinted, described."""

import json
from pathlib import Path

import pytest
import torch

import sae_files as files
from sae_files import activations, weights
from saelora.saes.formats import find_saes
from saelora.saes.loading import load_sae


def test_loaded_sae_is_frozen_in_evaluation_mode_and_passes_gradients_to_its_input(tmp_path: Path) -> None:
    loaded = load_sae(str(files.write_saelens(tmp_path / "sae", weights())))
    assert not loaded.sae.training
    assert [name for name, p in loaded.sae.named_parameters() if p.requires_grad] == []
    x = activations(dtype=torch.float32).requires_grad_()
    loaded.sae(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_dtype_has_the_same_fingerprint(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights(dtype=torch.float32))
    loaded = load_sae(str(folder), dtype=dtype)
    assert {p.dtype for p in loaded.sae.parameters()} == {dtype}
    assert loaded.sae(activations().to(dtype)).dtype == dtype
    assert loaded.fingerprint == load_sae(str(folder)).fingerprint
    assert len(loaded.fingerprint) == 16


def test_fingerprint_ignores_file_format_and_notices_one_changed_weight(tmp_path: Path) -> None:
    w = weights(dtype=torch.float32)
    native = load_sae(str(files.write_saelens(tmp_path / "a", w, apply_b_dec_to_input=False)))
    gemma = load_sae(str(files.write_gemma_scope(tmp_path / "b", w)), hookpoint="layers.1")
    assert native.fingerprint == gemma.fingerprint
    w["b_dec"][0] += 1e-3
    assert load_sae(str(files.write_saelens(tmp_path / "c", w))).fingerprint != native.fingerprint


def test_sae_does_not_change_when_its_file_is_overwritten(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights(dtype=torch.float32))
    loaded = load_sae(str(folder))
    before = loaded.sae.W_dec.clone()
    path = folder / "sae_weights.safetensors"
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(size // 2)
        file.write(b"\0" * (size - size // 2))
    torch.testing.assert_close(loaded.sae.W_dec, before, rtol=0, atol=0)


def test_saved_by_saelens_and_loaded_again_is_the_same_sae(tmp_path: Path) -> None:
    first = load_sae(str(files.write_llama_scope(tmp_path / "sae", weights())))
    first.sae.save_model(tmp_path / "saved")
    again = load_sae(str(tmp_path / "saved"))
    assert again.fingerprint == first.fingerprint
    assert again.hookpoint == first.hookpoint
    x = activations(dtype=torch.float32)
    torch.testing.assert_close(again.sae(x), first.sae(x), rtol=0, atol=0)


def test_metadata_is_plain_json_and_override_wins_over_it(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights())
    loaded = load_sae(str(folder), hookpoint="layers.9.mlp_out")
    assert json.loads(json.dumps(loaded.metadata)) == loaded.metadata
    assert loaded.metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert str(loaded.hookpoint) == "layers.9.mlp_out"
    assert (loaded.d_in, loaded.d_sae, loaded.revision, loaded.ref) == (6, 20, None, str(folder))


def test_sae_at_the_root_wins_over_checkpoints_below_it(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights(0))
    files.write_saelens(folder / "checkpoints" / "step_100", weights(5))
    other = files.write_saelens(tmp_path / "other", weights(0))
    assert load_sae(str(folder)).fingerprint == load_sae(str(other)).fingerprint


def test_only_complete_file_sets_count_as_saes() -> None:
    paths = [
        "a/cfg.json", "a/sae_weights.safetensors", "b/cfg.json", "c/sae.safetensors", "d/ae.pt", "d/config.json",
        "e/hyperparams.json", "e/checkpoints/final.safetensors", "f/checkpoints/final.safetensors", "my_params.npz",
    ]  # fmt: skip
    assert [(one.folder, one.format) for one in find_saes(paths)] == [
        ("a", "saelens"),
        ("d", "dictionary_learning"),
        ("e", "llama_scope"),
    ]
