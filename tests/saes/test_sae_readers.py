"""Every format, read from disk, computes what the library that wrote it computes."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes import SAE
from sparsify import SparseCoder, SparseCoderConfig

import sae_files as files
from sae_files import D_IN, D_SAE, K, activations, weights
from saelora.models.hookpoints import Hookpoint
from saelora.saes.loading import load_sae

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
F64 = torch.float64


def saelens_reference(monkeypatch: pytest.MonkeyPatch, root: Path, loader: Any, folder: str, **overrides: Any) -> Any:
    """SAELens' own hub conversion, with its downloads answered from `root`; `repo` names the repository."""

    def local(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(root / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    repo = overrides.pop("repo", "owner/name")
    overrides["dtype"] = "float64"
    cfg, state, _ = loader(repo, folder, "cpu", False, overrides)
    return SAE.load_from_disk(root, converter=lambda *_, **__: (cfg, state))


def assert_same(loaded: Any, reference: Any) -> None:
    x = activations()
    assert reference.encode(x).count_nonzero() > 0
    torch.testing.assert_close(loaded.sae.encode(x), reference.encode(x), **TIGHT)
    torch.testing.assert_close(loaded.sae(x), reference(x), **TIGHT)


@pytest.mark.parametrize("subtract", [True, False])
def test_native_jumprelu_equals_saelens_disk_loader(tmp_path: Path, subtract: bool) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights(), apply_b_dec_to_input=subtract)
    loaded = load_sae(str(folder), dtype=F64)
    assert_same(loaded, SAE.load_from_disk(folder, dtype="float64"))
    assert (loaded.format, loaded.architecture, str(loaded.hookpoint)) == ("saelens", "jumprelu", "layers.3.resid_post")


def test_native_topk_with_decoder_norms_equals_saelens_disk_loader(tmp_path: Path) -> None:
    w = weights()
    del w["threshold"]
    folder = files.write_saelens(tmp_path / "sae", w, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    loaded = load_sae(str(folder), dtype=F64)
    assert_same(loaded, SAE.load_from_disk(folder, dtype="float64"))
    assert loaded.metadata["k"] == K


def test_flat_configuration_of_saelens_5_is_migrated(tmp_path: Path) -> None:
    w = weights()
    del w["threshold"]
    folder = files.write_saelens(tmp_path / "sae", w)
    (folder / "cfg.json").write_text(
        '{"d_in": 6, "d_sae": 20, "dtype": "torch.float32", "hook_point": "blocks.2.hook_mlp_out", "context_size": 64,'
        '"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "sae_lens_version": "4.1.0",'
        '"model_name": "old"}'
    )
    loaded = load_sae(str(folder), dtype=F64)
    assert_same(loaded, SAE.load_from_disk(folder, dtype="float64"))
    assert (str(loaded.hookpoint), loaded.architecture, loaded.model_name) == ("layers.2.mlp_out", "topk", "old")
    assert (loaded.metadata["k"], loaded.metadata["context_size"]) == (K, 64)


def test_layer_norm_sae_equals_saelens_and_says_so(tmp_path: Path) -> None:
    folder = files.write_saelens(tmp_path / "sae", weights(), normalize_activations="layer_norm")
    loaded = load_sae(str(folder), dtype=F64)
    assert_same(loaded, SAE.load_from_disk(folder, dtype="float64"))
    assert loaded.metadata["normalize_activations"] == "layer_norm"


def test_saved_scaling_factor_is_folded_into_a_mid_run_checkpoint(tmp_path: Path) -> None:
    w = weights()
    folder = files.write_saelens(tmp_path / "sae", w, normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.5, "has_whitening": false}')
    loaded = load_sae(str(folder), dtype=F64)
    x = activations()
    acts = files.jump_relu((2.5 * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])
    torch.testing.assert_close(loaded.sae(x), (acts @ w["W_dec"] + w["b_dec"]) / 2.5, **TIGHT)
    assert loaded.metadata["normalize_activations"] == "none"


def test_attn_z_sae_takes_merged_heads(tmp_path: Path) -> None:
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.attn.hook_z"}
    folder = files.write_saelens(tmp_path / "sae", weights(), reshape_activations="hook_z", metadata=metadata)
    loaded = load_sae(str(folder), dtype=F64)
    x = activations()
    reference = SAE.load_from_disk(folder, dtype="float64")(x.reshape(3, 5, 2, D_IN // 2))
    torch.testing.assert_close(loaded.sae(x), reference.reshape(x.shape), **TIGHT)
    assert loaded.hookpoint == Hookpoint(1, "attn_z")


@pytest.mark.parametrize(("release", "site"), [("res", "resid_post"), ("mlp", "mlp_out"), ("att", "attn_z")])
def test_gemma_scope_equals_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, site: str) -> None:
    root = tmp_path / f"gemma-scope-2b-pt-{release}"
    inner = "layer_12/width_16k/average_l0_82"
    folder = files.write_gemma_scope(root / inner, weights())
    loaded = load_sae(str(folder), dtype=F64)
    overrides = {"d_in": D_IN, "d_sae": D_SAE, "repo": f"google/{root.name}", "reshape_activations": "none"}
    # SAELens reads npz as float32
    reference = saelens_reference(monkeypatch, root, loaders.gemma_2_sae_huggingface_loader, inner, **overrides)
    x = activations()
    torch.testing.assert_close(loaded.sae.encode(x), reference.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.sae(x), reference(x), rtol=1e-5, atol=1e-5)
    assert loaded.hookpoint == Hookpoint(12, site)  # type: ignore[arg-type]
    assert (loaded.format, loaded.model_name) == ("gemma_scope", "google/gemma-2-2b")
    assert load_sae(str(folder / "params.npz"), dtype=F64).fingerprint == loaded.fingerprint


def test_gemma_scope_2_equals_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    root, inner = tmp_path / "gemma-scope-2-1b-pt", "resid_post/layer_9_width_16k_l0_small"
    (root / inner).mkdir(parents=True)
    w = {key.lower(): value for key, value in weights().items()}
    save_file(w, root / inner / "params.safetensors")
    (root / inner / "config.json").write_text(
        '{"architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "hf_hook_point_in": "model.layers.9.output"}'
    )
    shapes = {key: list(value.shape) for key, value in w.items()}
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes)
    reference = saelens_reference(monkeypatch, root, loaders.gemma_3_sae_huggingface_loader, inner)
    loaded = load_sae(str(root), dtype=F64)
    assert_same(loaded, reference)
    assert (str(loaded.hookpoint), loaded.model_name) == ("layers.9.resid_post", "gemma-3-1b-pt")


def test_llama_scope_with_unit_decoder_equals_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights()
    w["W_dec"] /= w["W_dec"].norm(dim=-1, keepdim=True)
    inner = "Llama3_1-8B-Base-L7M-8x"
    folder = files.write_llama_scope(tmp_path / inner, w)
    reference = saelens_reference(monkeypatch, tmp_path, loaders.llama_scope_sae_huggingface_loader, inner)
    reference.fold_activation_norm_scaling_factor(D_IN**0.5 / 3.5)
    loaded = load_sae(str(folder), dtype=F64)
    assert_same(loaded, reference)
    assert (str(loaded.hookpoint), loaded.model_name) == ("layers.7.mlp_out", "meta-llama/Llama-3.1-8B")


def test_llama_scope_threshold_applies_to_a_unit_norm_decoder(tmp_path: Path) -> None:
    """The order of Language-Model-SAEs: undo the data set's scaling, give the decoder unit rows, then threshold."""
    w = weights()
    loaded = load_sae(str(files.write_llama_scope(tmp_path / "sae", w)), dtype=F64)
    factor, norm, x = D_IN**0.5 / 3.5, w["W_dec"].norm(dim=-1), activations()
    acts = files.jump_relu((x @ w["W_enc"] + w["b_enc"] / factor) * norm, 0.4)
    expected = acts @ (w["W_dec"] / norm[:, None]) + w["b_dec"] / factor
    torch.testing.assert_close(loaded.sae(x), expected, **TIGHT)


@pytest.mark.parametrize("by_norm", [True, False])
def test_llama_scope_topk_ranks_by_decoder_norm_only_when_trained_so(tmp_path: Path, by_norm: bool) -> None:
    w = weights()
    folder = files.write_llama_scope(
        tmp_path / "sae", w, act_fn="topk", jump_relu_threshold=0.0, sparsity_include_decoder_norm=by_norm
    )
    factor, x = D_IN**0.5 / 3.5, activations()
    norm = w["W_dec"].norm(dim=-1) if by_norm else torch.ones(D_SAE, dtype=F64)
    acts = files.top_k((factor * x @ w["W_enc"] + w["b_enc"]) * norm, K) / norm
    expected = (acts @ w["W_dec"] + w["b_dec"]) / factor
    torch.testing.assert_close(load_sae(str(folder), dtype=F64).sae(x), expected, **TIGHT)


@pytest.mark.parametrize(
    ("name", "hookpoint"),
    [
        ("layers.12", "layers.12.resid_post"),
        ("layers.3.mlp", "layers.3.mlp_module_out"),
        ("h.2", "layers.2.resid_post"),
    ],
)
@pytest.mark.parametrize("normalize_decoder", [True, False])
def test_sparsify_equals_its_own_forward(tmp_path: Path, name: str, hookpoint: str, normalize_decoder: bool) -> None:
    coder = SparseCoder(D_IN, SparseCoderConfig(k=K, num_latents=D_SAE, normalize_decoder=normalize_decoder), dtype=F64)
    with torch.no_grad():
        coder.b_dec.copy_(weights()["b_dec"])
        coder.encoder.bias.copy_(weights()["b_enc"])
        coder.W_dec.mul_(torch.linspace(0.5, 2, D_SAE, dtype=F64)[:, None])
    coder.save_to_disk(tmp_path / name)
    (tmp_path / "config.json").write_text('{"sae": {}, "model": "some/model", "ctx_len": 512}')
    loaded = load_sae(str(tmp_path / name), dtype=F64)
    x = activations().flatten(0, 1)
    theirs = coder(x)
    torch.testing.assert_close(loaded.sae(x), theirs.sae_out, **TIGHT)
    acts = torch.zeros(len(x), D_SAE, dtype=F64).scatter(-1, theirs.latent_indices, theirs.latent_acts)
    torch.testing.assert_close(loaded.sae.encode(x), acts, **TIGHT)
    assert (loaded.format, str(loaded.hookpoint), loaded.model_name) == ("sparsify", hookpoint, "some/model")
    assert loaded.metadata["k"] == K


def test_sparsify_seed_folder_takes_hookpoint_from_its_parent(tmp_path: Path) -> None:
    coder = SparseCoder(D_IN, SparseCoderConfig(k=K, num_latents=D_SAE))
    coder.save_to_disk(tmp_path / "layers.4.attn" / "seed1")
    assert str(load_sae(str(tmp_path / "layers.4.attn" / "seed1")).hookpoint) == "layers.4.attn_module_out"


def _dictionaries() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """dict_class -> state dict, extra trainer entries."""
    w = weights()
    scalar = torch.tensor(0.7, dtype=F64)
    k = torch.tensor(K, dtype=torch.int)
    linear = {**files.linear_names(w, "b_dec"), "threshold": scalar, "k": k}
    gated = {name: value for name, value in files.linear_names(w, "decoder_bias").items() if name != "encoder.bias"}
    gated |= {"gate_bias": w["b_enc"], "mag_bias": w["b_enc"].flip(0), "r_mag": w["threshold"]}
    groups = torch.tensor([5, 15])
    matryoshka = {**w, "threshold": scalar, "k": k, "group_sizes": groups}
    return {
        "AutoEncoder": (files.linear_names(w, "bias"), {}),
        "GatedAutoEncoder": (gated, {}),
        "JumpReluAutoEncoder": (dict(w), {}),
        "AutoEncoderTopK": (linear, {"k": K}),
        "BatchTopKSAE": (linear, {"k": K}),
        "MatryoshkaBatchTopKSAE": (matryoshka, {"k": K}),
    }


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dict_class", list(_dictionaries()))
def test_dictionary_learning_equals_saelens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dict_class: str, nested: bool
) -> None:
    state, trainer = _dictionaries()[dict_class]
    plain = files.write_dictionary_learning(tmp_path / "plain", dict_class, state, **trainer)
    loader = loaders.dictionary_learning_sae_huggingface_loader_1
    try:
        reference = saelens_reference(monkeypatch, tmp_path, loader, "plain")
    except RuntimeError as error:
        if "Unexpected key(s)" not in str(error):
            raise
        pytest.skip(f"SAELens {version('sae-lens')} does not read its own {dict_class}: {' '.join(str(error).split())}")
    if nested:
        plain = files.write_dictionary_learning(tmp_path / "mid", dict_class, {"ae": state, "step": 7}, **trainer)
    loaded = load_sae(str(plain), dtype=F64)
    assert_same(loaded, reference)
    assert (str(loaded.hookpoint), loaded.model_name) == ("layers.5.resid_post", "EleutherAI/pythia-70m")
    assert loaded.metadata["context_size"] == 128
    assert loaded.metadata.get("k") == trainer.get("k")


def test_dictionary_learning_autoencoder_new_does_not_subtract_its_bias(tmp_path: Path) -> None:
    w, x = weights(), activations()
    folder = files.write_dictionary_learning(tmp_path / "sae", "AutoEncoderNew", files.linear_names(w))
    expected = torch.relu(x @ w["W_enc"] + w["b_enc"]) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(load_sae(str(folder), dtype=F64).sae(x), expected, **TIGHT)


def test_dictionary_learning_site_comes_from_the_submodule(tmp_path: Path) -> None:
    state = files.linear_names(weights(), "bias")
    folder = files.write_dictionary_learning(tmp_path, "AutoEncoder", state, submodule_name="mlp_out_layer_5")
    assert str(load_sae(str(folder)).hookpoint) == "layers.5.mlp_out"


def test_importing_the_door_imports_no_sae_library() -> None:
    import subprocess

    code = "import sys, saelora.saes.loading; print([m for m in ('sae_lens', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
