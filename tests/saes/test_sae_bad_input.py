"""Whatever is wrong with an SAE's files ends in one line that says what to do."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

import sae_files as files
from sae_files import weights
from saelora.errors import InputError
from saelora.saes.loading import check_fits, load_sae


def refused(ref: Path | str, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_sae(str(ref), **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_without_a_known_format_names_what_was_seen_and_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("x")
    message = refused(tmp_path)
    assert "saw model.bin" in message
    for known in ("sae_weights.safetensors", "params.npz", "ae.pt", "hyperparams.json", "sae.safetensors"):
        assert known in message


def test_empty_folder_and_unknown_file_are_refused(tmp_path: Path) -> None:
    assert "saw no files" in refused(tmp_path)
    (tmp_path / "weights.bin").write_text("x")
    assert "weights.bin is not a file of a known SAE format" in refused(tmp_path / "weights.bin")


def test_folder_of_several_saes_lists_them_in_layer_order(tmp_path: Path) -> None:
    for layer in (10, 2):
        SparseCoder(6, SparseCoderConfig(k=2, num_latents=8)).save_to_disk(tmp_path / f"layers.{layer}")
    assert "holds 2 SAEs" in refused(tmp_path)
    assert "choices: layers.2, layers.10" in refused(tmp_path)


def _write(kind: str, folder: Path) -> Path:
    """A good SAE of each format; returns its weights file."""
    w = weights()
    if kind == "saelens":
        return files.write_saelens(folder, w) / "sae_weights.safetensors"
    if kind == "gemma_scope":
        return files.write_gemma_scope(folder / "gemma-scope-2b-pt-res" / "layer_1", w) / "params.npz"
    if kind == "llama_scope":
        return files.write_llama_scope(folder, w) / "checkpoints" / "final.safetensors"
    if kind == "sparsify":
        SparseCoder(6, SparseCoderConfig(k=2, num_latents=20)).save_to_disk(folder / "layers.1")
        return folder / "layers.1" / "sae.safetensors"
    return files.write_dictionary_learning(folder, "AutoEncoder", files.linear_names(w, "bias")) / "ae.pt"


KINDS = ["saelens", "gemma_scope", "llama_scope", "sparsify", "dictionary_learning"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_name_the_file(tmp_path: Path, kind: str, damage: str) -> None:
    path = _write(kind, tmp_path / "sae")
    assert load_sae(str(path.parent.parent if kind == "llama_scope" else path.parent)).format == kind
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "garbage": b"not weights at all" * 9, "empty": b""}[damage]
    )
    message = refused(tmp_path / "sae")
    assert path.name in message
    assert "corrupt" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
# SPEC 12.4
def test_nan_or_inf_weights_are_counted_and_named(tmp_path: Path, bad: float) -> None:
    w = weights()
    w["b_enc"][:3] = bad
    message = refused(files.write_saelens(tmp_path / "sae", w))
    assert "3 of 20 values of b_enc are NaN or infinite" in message


def test_large_weights_whose_sum_is_no_number_are_numbers(tmp_path: Path) -> None:
    w = weights()
    w["b_enc"][:3] = 3e38
    loaded = load_sae(str(files.write_saelens(tmp_path / "sae", w)))
    assert loaded.sae.b_enc.sum().isinf()


def test_weights_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    w = weights()
    w["W_dec"][0, 0] = 1e6
    assert "dtype is too narrow" in refused(files.write_saelens(tmp_path / "sae", w), dtype=torch.float16)


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    assert "size mismatch for W_enc" in refused(files.write_saelens(tmp_path / "wide", weights(), d_sae=21))
    w = weights()
    del w["threshold"]
    assert "threshold" in refused(files.write_saelens(tmp_path / "missing", w))


def test_broken_or_incomplete_configuration_is_refused(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights())
    (folder / "cfg.json").write_text('{"d_in": ')
    assert "cfg.json cannot be read as JSON" in refused(folder)
    (folder / "cfg.json").write_text("[1]")
    assert "holds a JSON list" in refused(folder)
    (folder / "cfg.json").write_text('{"d_sae": 20, "sae_lens_version": "6.1.0", "architecture": "jumprelu"}')
    assert "d_in" in refused(folder)
    other = files.write_dictionary_learning(tmp_path / "dl", "AutoEncoder", files.linear_names(weights(), "bias"))
    (other / "config.json").write_text('{"trainer": 3}')
    assert "'trainer', expected an object" in refused(other)
    files.write_llama_scope(tmp_path / "llama", weights(), dataset_average_activation_norm=3)
    assert "not a usable llama_scope SAE" in refused(tmp_path / "llama")


def test_unknown_architecture_and_class_list_the_known_ones(tmp_path: Path) -> None:
    message = refused(files.write_saelens(tmp_path / "sae", weights(), architecture="batchtopk"))
    assert "'batchtopk'" in message
    assert "jumprelu" in message
    state = files.linear_names(weights(), "bias")
    assert "BatchTopKSAE" in refused(files.write_dictionary_learning(tmp_path / "dl", "Identity", state))


def test_unfolded_input_scaling_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights(), normalize_activations="expected_average_only_in")
    assert '{"scaling_factor": sqrt(d_in) / mean norm}' in refused(folder)
    for text in ("[]", "{", '{"scaling_factor": "x"}', '{"scaling_factor": 0}', '{"scaling_factor": NaN}', "{}"):
        (folder / "activation_scaler.json").write_text(text)
        assert "activation_scaler.json" in refused(folder), text


@pytest.mark.parametrize("name", [None, "hook_embed", "blocks.3.hook_resid_mid"])
def test_sae_without_a_spliceable_hookpoint_asks_for_one_and_takes_the_override(
    tmp_path: Path, name: str | None
) -> None:
    metadata = {"sae_lens_version": "6.54.12", **({"hook_name": name} if name else {})}
    folder = files.write_saelens(tmp_path / "sae", weights(), metadata=metadata)
    assert "give hookpoint" in refused(folder)
    assert str(load_sae(str(folder), hookpoint="h.4.mlp").hookpoint) == "layers.4.mlp_out"


def test_gemma_scope_without_telling_folders_needs_the_override(tmp_path: Path) -> None:
    folder = files.write_gemma_scope(tmp_path / "here", weights())
    assert "give hookpoint" in refused(folder)
    assert str(load_sae(str(folder), hookpoint="layers.4.attn_z").hookpoint) == "layers.4.attn_z"


def test_transcoders_that_are_no_layers_mlp_or_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    metadata = {
        "sae_lens_version": "6.0.0",
        "hook_name": "blocks.1.hook_mlp_in",
        "hook_name_out": "blocks.1.hook_mlp_out",
    }
    native = files.write_saelens(tmp_path / "native", weights(), metadata=metadata)
    typed = files.write_saelens(tmp_path / "typed", weights(), architecture="jumprelu_transcoder", d_out=6)
    llama = files.write_llama_scope(tmp_path / "llama", weights(), hook_point_out="blocks.7.hook_resid_post")
    SparseCoder(6, SparseCoderConfig(k=2, skip_connection=True)).save_to_disk(tmp_path / "layers.2.mlp")
    for folder in (native, typed, llama, tmp_path / "layers.2.mlp"):
        assert "transcoder" in refused(folder), folder


def test_groupmax_and_signed_topk_are_refused_rather_than_run_as_topk(tmp_path: Path) -> None:
    SparseCoder(6, SparseCoderConfig(k=4, num_latents=20, activation="groupmax")).save_to_disk(tmp_path / "layers.1")
    assert "groupmax" in refused(tmp_path / "layers.1")
    SparseCoder(6, SparseCoderConfig(k=4, num_latents=20)).save_to_disk(tmp_path / "layers.2")
    cfg = json.loads((tmp_path / "layers.2" / "cfg.json").read_text())
    (tmp_path / "layers.2" / "cfg.json").write_text(json.dumps({**cfg, "signed": True}))
    assert "signed topk" in refused(tmp_path / "layers.2")


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


# SPEC 12.8
def test_pickled_code_in_ae_pt_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    state = {**files.linear_names(weights(), "bias"), "extra": Payload(mark)}
    message = refused(files.write_dictionary_learning(tmp_path / "sae", "AutoEncoder", state))
    assert "pickled Python objects" in message
    assert not mark.exists()


def test_pickled_code_in_params_npz_is_refused_and_never_run(tmp_path: Path) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "layer_1"
    folder.mkdir()
    np.savez(folder / "params.npz", W_enc=np.array([Payload(mark)], dtype=object))
    assert "params.npz cannot be read" in refused(folder, hookpoint="layers.1")
    assert not mark.exists()


@pytest.mark.parametrize("header", ["{'descr': '<f4',\n ", "{'descr': \\", "]"])
def test_array_with_a_damaged_header_is_refused(tmp_path: Path, header: str) -> None:
    folder = tmp_path / "layer_1"
    folder.mkdir()
    with zipfile.ZipFile(folder / "params.npz", "w") as file:
        file.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    assert "params.npz cannot be read" in refused(folder, hookpoint="layers.1")


def test_extra_gemma_scope_tensor_is_refused_unless_it_scales_by_one(tmp_path: Path) -> None:
    w = weights()
    plain = load_sae(str(files.write_gemma_scope(tmp_path / "a", w)), hookpoint="layers.1")
    ones = {**w, "scaling_factor": torch.ones(20)}
    same = load_sae(str(files.write_gemma_scope(tmp_path / "b", ones)), hookpoint="layers.1")
    assert same.fingerprint == plain.fingerprint
    twos = {**w, "scaling_factor": 2 * torch.ones(20)}
    assert "scaling_factor" in refused(files.write_gemma_scope(tmp_path / "c", twos), hookpoint="layers.1")


def test_k_beyond_the_latents_is_refused(tmp_path: Path) -> None:
    SparseCoder(6, SparseCoderConfig(k=21, num_latents=20)).save_to_disk(tmp_path / "layers.1")
    assert "k is 21, expected 1 to d_sae 20" in refused(tmp_path / "layers.1")


def test_bad_device_dtype_revision_and_hookpoint_are_refused(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights())
    assert "dtype is torch.int8" in refused(folder, dtype=torch.int8)
    assert "device nowhere" in refused(folder, device="nowhere")
    assert "only hub repositories have revisions" in refused(folder, revision="main")
    assert "hookpoint 'layer twelve' is not known" in refused(folder, hookpoint="layer twelve")


def test_sae_of_another_width_does_not_fit(tmp_path: Path) -> None:
    loaded = load_sae(str(files.write_saelens(tmp_path / "sae", weights())))
    check_fits(loaded, 6)
    with pytest.raises(InputError, match=r"expects d_in 6, layers\.3\.resid_post has 8: is this SAE for another model"):
        check_fits(loaded, 8)


def test_missing_tensor_names_the_key(tmp_path: Path) -> None:
    folder = files.write_llama_scope(tmp_path / "sae", weights())
    save_file({"encoder.bias": torch.zeros(3)}, folder / "checkpoints" / "final.safetensors")
    assert "has no 'encoder.weight'" in refused(folder)
