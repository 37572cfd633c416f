"""What a reader does not understand, it refuses; what earlier versions of a library did, it does too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

import sae_files as files
from sae_files import D_IN, D_SAE, K, activations, weights
from saelora.errors import InputError
from saelora.saes.loading import load_sae

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
F64 = torch.float64


def refused(ref: Path, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_sae(str(ref), **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saelens_5(folder: Path, extra: dict[str, torch.Tensor] | None = None, **cfg: Any) -> Path:
    """A ReLU SAE as SAELens 3 to 5 wrote it."""
    w = {key: value for key, value in weights().items() if key != "threshold"}
    files.write_saelens(folder, {**w, **(extra or {})})
    full = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": "blocks.2.hook_resid_pre",
        "hook_layer": 2,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "text",
        "dataset_trust_remote_code": True,
        "normalize_activations": "none",
        "model_from_pretrained_kwargs": {},
        "seqpos_slice": [None],
        "neuronpedia_id": None,
        "sae_lens_training_version": "4.1.0",
        **cfg,
    }
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in full.items() if value is not ...}))
    return folder


def relu_sae(x: torch.Tensor) -> torch.Tensor:
    w = weights()
    return torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])


@pytest.mark.parametrize(
    ("function", "kwargs"),
    [
        ("tanh-relu", {}),
        ("identity", {}),
        ("gelu", {}),
        (["relu"], {}),
        ("relu", {"k": 3}),
        ("topk", {"k": 3, "signed": True}),
    ],
)
@pytest.mark.parametrize("key", ["activation_fn", "activation_fn_str"])
def test_activation_functions_that_saelens_6_would_run_as_relu_are_refused(
    tmp_path: Path, key: str, function: Any, kwargs: Any
) -> None:
    names = {"activation_fn_str": ..., key: function, "activation_fn_kwargs": kwargs}
    message = refused(saelens_5(tmp_path, **names))
    assert "cfg.json" in message
    assert "activation" in message


def test_an_activation_function_in_a_version_6_configuration_is_refused_too(tmp_path: Path) -> None:
    assert "tanh-relu" in refused(files.write_saelens(tmp_path, weights(), activation_fn="tanh-relu"))


@pytest.mark.parametrize(
    "places",
    [
        {"activation_fn_kwargs": {"k": K}},
        {"k": K},
        {"architecture": "topk", "k": K},
        {"activation_fn_kwargs": {"k": K}, "k": K},
    ],
    ids=str,
)
@pytest.mark.parametrize("version", [None, "4.1.0", "6.0.0"])
def test_topk_is_topk_wherever_its_k_stands(tmp_path: Path, places: dict[str, Any], version: str | None) -> None:
    cfg = {"activation_fn_str": "topk", "activation_fn_kwargs": None, **places, "sae_lens_version": version}
    loaded = load_sae(str(saelens_5(tmp_path, **cfg)), hookpoint="layers.2.resid_pre", dtype=F64)
    w, x = weights(), activations()
    acts = files.top_k((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    torch.testing.assert_close(loaded.sae.encode(x), acts, **TIGHT)
    assert (loaded.architecture, loaded.metadata["k"]) == ("topk", K)


def test_topk_without_k_or_with_two_is_refused(tmp_path: Path) -> None:
    assert "k missing" in refused(saelens_5(tmp_path / "a", activation_fn_str="topk"))
    two = {"activation_fn_kwargs": {"k": 3}, "k": 4}
    assert "3 and 4" in refused(saelens_5(tmp_path / "b", activation_fn_str="topk", **two))
    assert "k True" in refused(saelens_5(tmp_path / "c", architecture="topk", activation_fn_str=None, k=True))
    assert "k is 21" in refused(saelens_5(tmp_path / "d", architecture="topk", activation_fn_str=None, k=21))
    assert "k missing" in refused(files.write_saelens(tmp_path / "e", weights(), architecture="topk"))


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
@pytest.mark.parametrize("said", [True, None])
def test_a_factor_on_each_latent_reaches_the_reconstruction(tmp_path: Path, name: str, said: Any) -> None:
    factor = torch.linspace(0.5, 2, D_SAE, dtype=F64)
    folder = saelens_5(tmp_path, {name: factor}, finetuning_scaling_factor=said)
    w, x = weights(), activations()
    expected = (relu_sae(x) * factor) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(load_sae(str(folder), dtype=F64).sae(x), expected, **TIGHT)


def test_a_factor_that_files_and_configuration_disagree_on_is_refused(tmp_path: Path) -> None:
    assert "it is incomplete" in refused(saelens_5(tmp_path / "a", finetuning_scaling_factor=True))
    twos = {"scaling_factor": 2 * torch.ones(D_SAE)}
    assert "only one of them can be true" in refused(saelens_5(tmp_path / "b", twos))
    ones = {"scaling_factor": torch.ones(D_SAE)}
    plain = load_sae(str(saelens_5(tmp_path / "d"))).fingerprint
    assert load_sae(str(saelens_5(tmp_path / "c", ones))).fingerprint == plain


@pytest.mark.parametrize(
    "cfg",
    [
        {"hook_head_index": 3},
        {"hook_point_head_index": 0},
        {"reshape_activations": "heads"},
        {"normalize_activations": "batch_norm"},
        {"normalize_activations": True},
        {"apply_b_dec_to_input": "yes"},
        {"finetuning_scaling_factor": "yes"},
        {"use_squared_latents": True},
        {"decoder_gain": 1.5},
        {"metadata": {"hook_name": "blocks.2.hook_resid_pre"}},
        {"sae_lens_version": "six"},
        {"hook_point": "blocks.3.hook_resid_pre"},
        {"architecture": "temporal"},
        {"architecture": None},
    ],
    ids=str,
)
def test_entries_that_change_the_arithmetic_in_unknown_ways_are_refused(tmp_path: Path, cfg: dict[str, Any]) -> None:
    assert tmp_path.name in refused(saelens_5(tmp_path, **cfg))


def test_unknown_entries_that_are_off_and_known_ones_of_training_are_let_pass(tmp_path: Path) -> None:
    off = {
        "use_new_thing": False,
        "weight_of_it": 0,
        "its_kind": "none",
        "its_options": {},
        "its_list": [],
        "its_name": None,
    }
    training = {"l1_coefficient": 5.0, "noise_scale": 0.1, "use_ghost_grads": True, "wandb_project": "saes", "lr": 1e-3}
    x, w = activations(), weights()
    loaded = load_sae(str(saelens_5(tmp_path, **off, **training)), dtype=F64)
    torch.testing.assert_close(loaded.sae(x), relu_sae(x) @ w["W_dec"] + w["b_dec"], **TIGHT)


def test_a_training_checkpoint_of_version_6_is_read(tmp_path: Path) -> None:
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=3.0, dtype="float64"))
    sae.cfg.metadata.hook_name = "blocks.2.hook_resid_pre"
    sae.save_model(tmp_path)
    x = activations()
    torch.testing.assert_close(load_sae(str(tmp_path), dtype=F64).sae(x), sae(x), **TIGHT)


def _folders(root: Path) -> dict[str, tuple[Path, Path, Path]]:
    """A good SAE of each format: its folder, its weights, its configuration."""
    w = weights()
    native = files.write_saelens(root / "saelens", w)
    gemma = root / "gemma-scope-2-1b-pt" / "resid_post" / "layer_9_width_16k"
    gemma.mkdir(parents=True)
    save_file({key.lower(): value for key, value in w.items()}, gemma / "params.safetensors")
    (gemma / "config.json").write_text(
        json.dumps({"architecture": "jump_relu", "hf_hook_point_in": "model.layers.9.output"})
    )
    llama = files.write_llama_scope(root / "llama", w)
    SparseCoder(D_IN, SparseCoderConfig(k=K, num_latents=D_SAE)).save_to_disk(root / "layers.1")
    topk = {**files.linear_names(w, "b_dec"), "threshold": torch.tensor(0.7), "k": torch.tensor(K)}
    dictionary = files.write_dictionary_learning(root / "dl", "BatchTopKSAE", topk, k=K)
    return {
        "saelens": (native, native / "sae_weights.safetensors", native / "cfg.json"),
        "gemma_scope": (gemma, gemma / "params.safetensors", gemma / "config.json"),
        "llama_scope": (llama, llama / "checkpoints" / "final.safetensors", llama / "hyperparams.json"),
        "sparsify": (root / "layers.1", root / "layers.1" / "sae.safetensors", root / "layers.1" / "cfg.json"),
        "dictionary_learning": (dictionary, dictionary / "ae.pt", dictionary / "config.json"),
    }


FORMATS = ["saelens", "gemma_scope", "llama_scope", "sparsify", "dictionary_learning"]


@pytest.mark.parametrize("format", FORMATS)
# SPEC 12.4
def test_every_format_names_a_tensor_that_is_left_over(tmp_path: Path, format: str) -> None:
    folder, path, _ = _folders(tmp_path)[format]
    assert load_sae(str(folder)).format == format
    extra = {"gain": torch.ones(D_SAE)}
    if path.suffix == ".pt":
        torch.save({**torch.load(path), **extra}, path)
    else:
        save_file({**load_file(path), **extra}, path)
    assert "gain" in refused(folder)


@pytest.mark.parametrize("format", FORMATS)
# SPEC 12.4
def test_every_format_names_each_tensor_that_is_missing(tmp_path: Path, format: str) -> None:
    folder, path, _ = _folders(tmp_path)[format]
    whole = torch.load(path) if path.suffix == ".pt" else load_file(path)
    for name in whole:
        if name == "k":
            continue  # stands in the configuration too
        rest = {key: value for key, value in whole.items() if key != name}
        torch.save(rest, path) if path.suffix == ".pt" else save_file(rest, path)
        assert name in refused(folder).lower() or name in refused(folder), name


@pytest.mark.parametrize("format", FORMATS)
# SPEC 12.4
def test_every_format_names_an_entry_that_it_does_not_know(tmp_path: Path, format: str) -> None:
    folder, _, path = _folders(tmp_path)[format]
    cfg = json.loads(path.read_text())
    inner = cfg["trainer"] if format == "dictionary_learning" else cfg
    inner["square_the_latents"] = True
    path.write_text(json.dumps(cfg))
    assert "square_the_latents" in refused(folder)
    inner["square_the_latents"] = False
    path.write_text(json.dumps(cfg))
    assert load_sae(str(folder)).format == format


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("norm_activation", "token-wise"),
        ("norm_activation", ...),
        ("act_fn", ...),
        ("act_fn", "tanh"),
        ("apply_decoder_bias_to_pre_encoder", ...),
        ("apply_decoder_bias_to_pre_encoder", 1),
        ("sparsity_include_decoder_norm", ...),
        ("use_decoder_bias", False),
        ("use_glu_encoder", True),
        ("jump_relu_threshold", -0.5),
        ("jump_relu_threshold", "0.5"),
        ("dataset_average_activation_norm", {"in": 3.5, "out": 4.0}),
        ("dataset_average_activation_norm", {"in": True}),
        ("d_model", 7),
        ("d_sae", 21),
        ("hook_point_out", "blocks.7.hook_resid_post"),
    ],
)
def test_llama_scope_entries_that_would_be_misread_are_refused(tmp_path: Path, entry: str, value: Any) -> None:
    folder, _, path = _folders(tmp_path)["llama_scope"]
    cfg = {**json.loads(path.read_text()), entry: value}
    path.write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}))
    refused(folder)


def test_llama_scope_runs_topk_with_a_threshold_as_its_library_does(tmp_path: Path) -> None:
    folder = files.write_llama_scope(tmp_path / "a", weights(), act_fn="topk", jump_relu_threshold=0.4)
    jump = files.write_llama_scope(tmp_path / "b", weights(), act_fn="jumprelu", jump_relu_threshold=0.4)
    assert load_sae(str(folder)).architecture == "jumprelu"
    assert load_sae(str(folder)).fingerprint == load_sae(str(jump)).fingerprint


@pytest.mark.parametrize(
    ("entry", "value"),
    [("k", 0), ("k", True), ("k", "4"), ("d_in", 7), ("num_latents", 21), ("signed", "false"), ("activation", "relu")],
)
def test_sparsify_entries_that_would_be_misread_are_refused(tmp_path: Path, entry: str, value: Any) -> None:
    folder, _, path = _folders(tmp_path)["sparsify"]
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    refused(folder)


@pytest.mark.parametrize(
    ("mode", "name", "where"),
    [
        ("output", "layers.1.mlp", "layers.1.mlp_module_out"),
        ("input", "layers.1", "layers.1.resid_pre"),
        ("input", "layers.1.self_attn.o_proj", "layers.1.attn_z"),
        ("input", "layers.1.mlp", None),
        ("transcode", "layers.1", None),
    ],
)
def test_sparsify_run_that_trained_on_inputs_is_read_so(
    tmp_path: Path, mode: str, name: str, where: str | None
) -> None:
    SparseCoder(D_IN, SparseCoderConfig(k=K, num_latents=D_SAE)).save_to_disk(tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"sae": {}, "ctx_len": 8, "hook_mode": mode}))
    if where is None:
        assert "does not say where" in refused(tmp_path / name)
    else:
        assert str(load_sae(str(tmp_path / name)).hookpoint) == where


@pytest.mark.parametrize(
    ("trainer", "state", "said"),
    [
        ({"k": K + 1}, {}, "k 5"),
        ({"activation_dim": 7}, {}, "activation_dim 7"),
        ({"dict_size": 21}, {}, "dict_size 21"),
        ({}, {"threshold": torch.tensor(-1.0)}, "negative threshold"),
        ({}, {"note": "text"}, "expected tensors alone"),
    ],
)
def test_dictionary_learning_files_of_different_saes_are_refused(
    tmp_path: Path, trainer: dict[str, Any], state: dict[str, Any], said: str
) -> None:
    w = weights()
    whole = {**files.linear_names(w, "b_dec"), "threshold": torch.tensor(0.7), "k": torch.tensor(K), **state}
    assert said in refused(files.write_dictionary_learning(tmp_path, "BatchTopKSAE", whole, **{"k": K, **trainer}))


def test_matryoshka_groups_must_cover_every_latent(tmp_path: Path) -> None:
    state = {**weights(), "threshold": torch.tensor(0.7), "k": torch.tensor(K), "group_sizes": torch.tensor([5, 10])}
    assert "[5, 10]" in refused(files.write_dictionary_learning(tmp_path, "MatryoshkaBatchTopKSAE", state, k=K))


@pytest.mark.parametrize(
    ("trainer", "buffer", "where"),
    [
        ({"submodule_name": "resid_post_layer_5"}, {"io": "out"}, "layers.5.resid_post"),
        ({"submodule_name": "resid_post_layer_5"}, {"io": "in"}, "layers.5.resid_pre"),
        ({"submodule_name": "mlp_layer_5"}, {}, "layers.5.mlp_module_out"),
        ({"submodule_name": "mlp_layer_5"}, {"io": "in"}, None),
        ({"submodule_name": "mlp_out_layer_5"}, {}, "layers.5.mlp_out"),
        ({"submodule_name": "mlp_out_layer_5", "lm_name": "google/gemma-2-2b"}, {}, None),
        ({"submodule_name": "resid_post_layer_5", "lm_name": "google/gemma-2-2b"}, {}, "layers.5.resid_post"),
    ],
)
def test_dictionary_learning_place_is_read_only_where_it_is_certain(
    tmp_path: Path, trainer: dict[str, Any], buffer: dict[str, Any], where: str | None
) -> None:
    folder = files.write_dictionary_learning(tmp_path, "AutoEncoder", files.linear_names(weights(), "bias"), **trainer)
    cfg = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**cfg, "buffer": buffer}))
    if where is None:
        assert "does not say where" in refused(folder)
    else:
        assert str(load_sae(str(folder)).hookpoint) == where


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"hf_hook_point_in": "model.layers.9.output"}, "layers.9.resid_post"),
        ({}, "layers.9.resid_post"),
        ({"hf_hook_point_in": "model.layers.8.output"}, None),
        ({"hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output"}, None),
        ({"architecture": "topk"}, None),
        ({"affine_connection": True}, None),
        ({"type": "crosscoder"}, None),
        ({"hf_hook_point_in": 9}, None),
    ],
)
def test_gemma_scope_2_configuration_must_agree_with_its_folder(tmp_path: Path, config: Any, where: str | None) -> None:
    folder, _, path = _folders(tmp_path)["gemma_scope"]
    path.write_text(json.dumps(config))
    if where is None:
        refused(folder)
    else:
        assert str(load_sae(str(folder)).hookpoint) == where


def test_gemma_scope_sae_of_the_embeddings_is_refused_also_where_a_place_is_given(tmp_path: Path) -> None:
    folder = files.write_gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k", weights())
    assert "token embeddings" in refused(folder, hookpoint="layers.0.resid_pre")
