"""Transcoders of every format: against their own library's forward where it is installed, else plain float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saelora.errors import InputError
from saelora.saes.loading import load_sae
from saelora.saes.sparse import sparse
from saelora.saes.transcoder import Transcoder

D, S, K = 6, 20, 4


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).float()

    made = {"W_enc": normal(D, S), "W_dec": normal(S, D), "b_enc": normal(S), "b_dec": 2 * normal(D)}
    return {**made, "threshold": normal(S).abs(), "W_skip": normal(D, D)}


def x():
    return 2 * torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plainly(w, x, activation="relu", skip=False):
    w = {name: tensor.double() for name, tensor in w.items()}
    pre = x @ w["W_enc"] + w["b_enc"]
    acts = torch.relu(pre) * (pre > w["threshold"]) if activation == "jumprelu" else torch.relu(pre)
    return acts @ w["W_dec"] + w["b_dec"] + (torch.einsum("...i,oi->...o", x, w["W_skip"]) if skip else 0)


def agrees(loaded, expected, given=None):
    given = x() if given is None else given
    sae = loaded.sae
    torch.testing.assert_close(sae(given), expected, rtol=0, atol=1e-10)
    whole = sae.decode(sae.encode(given))
    skip = sae.skip(given)
    torch.testing.assert_close(whole if skip is None else whole + skip, expected, rtol=0, atol=1e-10)
    assert isinstance(sae, Transcoder)
    assert not any(p.requires_grad for p in sae.parameters())


def save(folder, tensors, cfg=None, name="sae_weights.safetensors", config="cfg.json"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
    if cfg is not None:
        (folder / config).write_text(json.dumps(cfg))
    return folder


SAELENS = {"transcoder": [], "skip_transcoder": ["W_skip"], "jumprelu_transcoder": ["threshold"]}
SAELENS["jumprelu_skip_transcoder"] = ["threshold", "W_skip"]
HOOKS = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}


def saelens(folder, architecture, **metadata):
    """Written by SAELens itself."""
    from sae_lens.registry import get_sae_class

    sae_class, cfg_class = get_sae_class(architecture)
    cfg = cfg_class(d_in=D, d_sae=S, d_out=D, dtype="float32", device="cpu", apply_b_dec_to_input=False)
    for key, value in {**HOOKS, "model_name": "tiny", **metadata}.items():
        setattr(cfg.metadata, key, value)
    sae = sae_class(cfg)
    w = weights()
    sae.load_state_dict({k: w[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", *SAELENS[architecture])})
    sae.save_model(folder)
    return sae.double()


@pytest.mark.parametrize("architecture", SAELENS)
def test_saelens_transcoders_compute_what_saelens_computes(tmp_path: Path, architecture):
    theirs = saelens(tmp_path / "t", architecture)
    theirs.dtype = torch.float64
    loaded = load_sae(str(tmp_path / "t"), dtype=torch.float64)
    agrees(loaded, theirs(x()).detach())
    assert (loaded.architecture, loaded.format, str(loaded.hookpoint)) == (architecture, "saelens", "layers.3.mlp_out")
    assert (loaded.sae.reads, loaded.metadata["reads"], loaded.model_name) == ("mlp_in", "mlp_in", "tiny")
    assert (loaded.d_in, loaded.d_sae) == (D, S)


@pytest.mark.parametrize(
    ("metadata", "reads"),
    [
        ({"hook_name": "blocks.3.ln2.hook_normalized"}, "mlp_normalized"),
        ({"hook_name": "blocks.3.hook_resid_mid"}, "resid_mid"),
        ({"hook_name": "blocks.3.hook_mlp_in", "hf_hook_name": "model.layers.3.mlp.input"}, "mlp_in"),
        (
            {"hook_name": "blocks.3.hook_mlp_in", "hf_hook_name": "model.layers.3.pre_feedforward_layernorm.output"},
            "mlp_in",
        ),
        ({"model_from_pretrained_kwargs": {"fold_ln": True}}, "mlp_normalized"),
        ({"model_from_pretrained_kwargs": {"fold_ln": False}}, "mlp_in"),
    ],
)
def test_what_is_read_is_told_by_the_name_and_by_what_goes_with_it(tmp_path: Path, metadata, reads):
    saelens(tmp_path / "t", "transcoder", **metadata)
    assert load_sae(str(tmp_path / "t")).sae.reads == reads


def test_transformer_lens_normalises_as_the_norm_without_its_gain_does():
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.components import LayerNorm, RMSNorm
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from saelora.models.norms import without_gain

    cfg = HookedTransformerConfig(n_layers=1, d_model=D, n_ctx=4, d_head=2, act_fn="relu", d_vocab=5, eps=1e-6)
    gain, given = torch.linspace(0.5, 2, D), x().float()
    for ours, theirs, weight in (
        (LlamaRMSNorm(D, eps=1e-6), RMSNorm(cfg), gain),
        (Gemma2RMSNorm(D, eps=1e-6), RMSNorm(cfg), gain - 1),
        (torch.nn.LayerNorm(D, eps=1e-6), LayerNorm(cfg), gain),
    ):
        ours.weight.data, theirs.w.data, seen = weight.clone(), gain.clone(), []
        theirs.hook_normalized.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
        torch.testing.assert_close(theirs(given), ours(given), rtol=0, atol=1e-5)
        torch.testing.assert_close(without_gain(ours, D, "here")(given), seen[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_sparsify_transcoders_compute_what_sparsify_computes(tmp_path: Path, activation, skip):
    from sparsify import SparseCoder, SparseCoderConfig

    cfg = SparseCoderConfig(k=K, num_latents=S, transcode=True, skip_connection=skip, activation=activation)
    theirs, w = SparseCoder(D, cfg, dtype=torch.float32), weights()
    theirs.encoder.weight.data, theirs.encoder.bias.data = w["W_enc"].T.contiguous(), w["b_enc"]
    theirs.W_dec.data, theirs.b_dec.data = w["W_dec"], w["b_dec"]
    if skip:
        theirs.W_skip.data = w["W_skip"]
    theirs.save_to_disk(tmp_path / "layers.3.mlp")
    loaded = load_sae(str(tmp_path / "layers.3.mlp"), dtype=torch.float64)
    given = x().flatten(0, 1)
    agrees(loaded, theirs.double()(given).sae_out.detach(), given)
    assert (loaded.sae.reads, str(loaded.hookpoint)) == ("mlp_in", "layers.3.mlp_module_out")
    assert loaded.architecture == f"{activation}_{'skip_' * skip}transcoder"


def test_gemma_scope_transcoders_are_jumprelu_on_the_norms_output_before_its_gain(tmp_path: Path):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3" / "width_16k" / "average_l0_76"
    folder.mkdir(parents=True)
    w = weights()
    np.savez(folder / "params.npz", **{k: v.numpy() for k, v in w.items() if k != "W_skip"})
    loaded = load_sae(str(folder), dtype=torch.float64)
    agrees(loaded, plainly(w, x(), "jumprelu"))
    assert (loaded.sae.reads, str(loaded.hookpoint)) == ("mlp_normalized", "layers.3.mlp_out")
    assert (loaded.model_name, loaded.architecture) == ("google/gemma-2-2b", "jumprelu_transcoder")


def gemma_scope_2(folder, w, skip, **config):
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    state = {theirs: w[ours] for ours, theirs in names.items()}
    state |= {"affine_skip_connection": w["W_skip"].T.contiguous()} if skip else {}
    return save(folder, state, config or None, "params.safetensors", "config.json")


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("told", [False, True], ids=["by folders", "by config"])
def test_gemma_scope_2_transcoders_have_an_affine_skip_and_read_the_mlps_input(tmp_path: Path, skip, told):
    where = "model.layers.3.{}_feedforward_layernorm.output".format
    config = {"hf_hook_point_in": where("pre"), "hf_hook_point_out": where("post"), "architecture": "jump_relu"}
    config |= {"affine_connection": skip, "type": "transcoder", "model_name": "gemma-v3-1b-pt"}
    name = f"layer_3_width_16k_l0_small{'_affine' * skip}"
    folder = tmp_path / "google" / "gemma-scope-2-1b-pt" / "transcoder_all" / name
    w = weights()
    gemma_scope_2(folder, w, skip, **(config if told else {}))
    loaded = load_sae(str(folder), dtype=torch.float64)
    agrees(loaded, plainly(w, x(), "jumprelu", skip))
    assert (loaded.sae.reads, str(loaded.hookpoint)) == ("mlp_in", "layers.3.mlp_out")


def circuit_tracer(folder, w, config, *, layers=(0, 1, 2)):
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        save(folder, {**w, "W_enc": w["W_enc"].T, "b_dec": w["b_dec"] + layer}, name=f"layer_{layer}.safetensors")
    if config is not None:
        (folder / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in config.items()))
    return folder


SET = {
    "model_name": "Qwen/Qwen3-0.6B",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
    "scan": "org/set",
}


@pytest.mark.parametrize(
    ("extra", "renamed", "activation"),
    [
        ([], {}, "relu"),
        (["W_skip"], {}, "relu"),
        (["threshold"], {"threshold": "activation_function.threshold"}, "jumprelu"),
        (["threshold", "W_skip"], {}, "jumprelu"),
    ],
)
def test_a_layer_of_circuit_tracers_folder_is_read_by_its_file(tmp_path: Path, extra, renamed, activation):
    w = weights()
    kept = {renamed.get(k, k): w[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec", *extra)}
    folder = circuit_tracer(tmp_path / "set", kept, SET)
    loaded = load_sae(str(folder / "layer_2.safetensors"), dtype=torch.float64)
    agrees(loaded, plainly({**w, "b_dec": w["b_dec"] + 2}, x(), activation, "W_skip" in extra))
    assert (loaded.sae.reads, str(loaded.hookpoint)) == ("mlp_in", "layers.2.mlp_module_out")
    assert (loaded.format, loaded.model_name) == ("circuit_tracer", "Qwen/Qwen3-0.6B")


def test_mwhannas_files_without_config_read_and_write_as_saelens_says(tmp_path: Path):
    w = {k: v for k, v in weights().items() if k not in ("threshold", "W_skip")}
    folder = circuit_tracer(tmp_path / "qwen3-14b", w, None)
    (folder / "wandb-config.yaml").write_text("d_model: {value: 6}\n")
    loaded = load_sae(str(folder / "layer_1.safetensors"))
    assert (loaded.sae.reads, str(loaded.hookpoint)) == ("mlp_in", "layers.1.mlp_out")


def test_one_transcoder_has_one_fingerprint_in_every_format(tmp_path: Path):
    saelens(tmp_path / "t", "transcoder")
    w = {k: v for k, v in weights().items() if k not in ("threshold", "W_skip")}
    folder = circuit_tracer(tmp_path / "set", w, SET)
    assert load_sae(str(tmp_path / "t")).fingerprint == load_sae(str(folder / "layer_0.safetensors")).fingerprint


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_gathering_active_latents_gives_the_same_transcoder(tmp_path: Path, kind):
    from sparsify import SparseCoder, SparseCoderConfig

    if kind == "topk":
        cfg = SparseCoderConfig(k=K, num_latents=S, transcode=True, skip_connection=True)
        coder = SparseCoder(D, cfg)
        for parameter in coder.parameters():
            parameter.data.normal_()
        coder.save_to_disk(tmp_path / "layers.3.mlp")
        folder = tmp_path / "layers.3.mlp"
    else:
        saelens(tmp_path / "t", "jumprelu_skip_transcoder")
        folder = tmp_path / "t"
    sae = load_sae(str(folder), dtype=torch.float64).sae
    gathered = sparse(sae)
    assert gathered is not sae
    pull = torch.randn(x().shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, expected = (x().requires_grad_() for _ in range(2))
    recon, dense = gathered.reconstruct(found), sae.decode(sae.encode(expected))
    torch.testing.assert_close(recon, dense, rtol=0, atol=1e-10)
    (recon * pull).sum().backward()
    (dense * pull).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-10)
    assert gathered.reads == "mlp_in"
    torch.testing.assert_close(gathered.skip(x()), sae.skip(x()), rtol=0, atol=0)


def refused(ref):
    with pytest.raises(InputError) as caught:
        load_sae(str(ref))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_of_two_meanings_is_refused_and_so_is_one_of_none(tmp_path: Path):
    saelens(tmp_path / "a", "transcoder", hook_name="blocks.3.hook_mlp_in")
    assert "say which with hf_hook_name" in refused(tmp_path / "a")
    saelens(tmp_path / "b", "transcoder", hook_name="blocks.3.attn.hook_q")
    assert "reads blocks.3.attn.hook_q: expected an MLP's input" in refused(tmp_path / "b")
    saelens(tmp_path / "c", "transcoder", hook_name="blocks.2.mlp.hook_in")
    assert "expected one layer" in refused(tmp_path / "c")
    saelens(tmp_path / "d", "transcoder", hook_name_out="blocks.3.hook_resid_post")
    assert "writes layers.3.resid_post: only those that write an MLP's output" in refused(tmp_path / "d")
    saelens(tmp_path / "e", "transcoder", hook_name_out=None)
    assert "give hookpoint" in refused(tmp_path / "e")


def test_a_set_is_no_single_transcoder_and_names_its_layers(tmp_path: Path):
    w = {k: v for k, v in weights().items() if k not in ("threshold", "W_skip")}
    folder = circuit_tracer(tmp_path / "set", w, SET)
    assert "holds 3 transcoders, one a layer: name one, such as" in refused(folder)
    folder = circuit_tracer(tmp_path / "clt", w, {**SET, "model_kind": "cross_layer_transcoder"})
    assert "its folder the files of a transcoder_set" in refused(folder / "layer_0.safetensors")
    folder = circuit_tracer(tmp_path / "other", w, {**SET, "normalise": "true"})
    assert "sets normalise" in refused(folder / "layer_0.safetensors")
    folder = circuit_tracer(tmp_path / "more", {**w, "gain": torch.ones(3)}, SET)
    assert "has gain" in refused(folder / "layer_0.safetensors")


@pytest.mark.parametrize("where", ["config", "file", "name"])
def test_circuit_tracers_topk_sets_keep_the_largest_whatever_their_sign(tmp_path: Path, where):
    w = {k: v for k, v in weights().items() if k not in ("threshold", "W_skip")}
    w["b_enc"] = w["b_enc"] - 6  # so that some of the largest are negative
    k = 128 if where == "name" else K
    if where == "name":
        w = {
            name: tensor.repeat_interleave(8, {"W_enc": 1, "W_dec": 0, "b_enc": 0}.get(name, 0))
            for name, tensor in w.items()
        }
        w["b_dec"] = weights()["b_dec"]
    config = {**SET, "activation": "topk"} | ({"k": K} if where == "config" else {})
    folder = tmp_path / ("crv-8b-instruct-transcoders" if where == "name" else "set")
    circuit_tracer(folder, w | ({"k": torch.tensor(K)} if where == "file" else {}), config)
    loaded = load_sae(str(folder / "layer_0.safetensors"), dtype=torch.float64)
    pre = x() @ w["W_enc"].double() + w["b_enc"].double()
    kept = pre >= pre.sort(-1, descending=True).values[..., k - 1 : k]
    assert (kept & (pre < 0)).any()
    expected = torch.where(kept, pre, 0.0) @ w["W_dec"].double() + w["b_dec"].double()
    if where != "name":  # doubled latents tie
        agrees(loaded, expected)
        gathered, given, other = sparse(loaded.sae), x().requires_grad_(), x().requires_grad_()
        assert gathered is not loaded.sae
        torch.testing.assert_close(gathered.reconstruct(given), expected, rtol=0, atol=1e-10)
        gathered.reconstruct(given).square().sum().backward()
        loaded.sae(other).square().sum().backward()
        torch.testing.assert_close(given.grad, other.grad, rtol=0, atol=1e-8)
    assert (loaded.architecture, loaded.sae.cfg.k) == ("signed_topk_transcoder", k)


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"activation": "topk"}, {}, "has activation 'topk' and no k"),
        ({"activation": "topk", "k": 3}, {"k": torch.tensor(K)}, "has activation 'topk' and k 3 and 4"),
        ({"activation": "topk", "k": 0}, {}, "has k 0, expected a whole number of 1 or more"),
        ({"activation": "topk", "k": 99}, {}, "k is 99, expected 1 to d_sae 20"),
        ({"activation": "topk", "k": 3}, {"threshold": torch.zeros(S)}, "layer_0.safetensors a threshold"),
        ({"activation": "gelu"}, {}, "has activation 'gelu' beside no threshold"),
        ({"activation": "relu"}, {"threshold": torch.zeros(S)}, "has activation 'relu' beside a threshold"),
        ({"k": 3}, {}, "has no activation: topk, and there is a k"),
    ],
)
def test_activations_that_are_not_told_or_told_twice_are_refused(tmp_path: Path, config, tensors, said):
    w = {k: v for k, v in weights().items() if k not in ("threshold", "W_skip")} | tensors
    assert said in refused(circuit_tracer(tmp_path / "set", w, {**SET, **config}) / "layer_0.safetensors")


def test_weights_that_do_not_fit_and_an_affine_part_that_is_not_there_are_refused(tmp_path: Path):
    saelens(tmp_path / "t", "skip_transcoder")
    w = {k: weights()[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
    save(tmp_path / "t", w)
    assert "W_skip" in refused(tmp_path / "t")
    save(tmp_path / "t", {**w, "W_skip": torch.ones(D, D + 1)})
    assert "W_skip is torch.float32 of shape (6, 7)" in refused(tmp_path / "t")
    name = tmp_path / "gemma-scope-2-1b-pt" / "transcoder_all" / "layer_3_affine"
    assert "has no affine_skip_connection" in refused(gemma_scope_2(name, weights(), False, affine_connection=True))
