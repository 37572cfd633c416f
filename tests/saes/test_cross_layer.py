"""Cross-layer transcoders of both layouts against their arithmetic, written plainly, and files that are none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint
from saelora.saes import hub
from saelora.saes.loading import load_sae
from saelora.saes.sets import transcoders_of
from saelora.saes.sparse import sparse
from saelora.saes.transcoder import CrossLayerTranscoder
from tiny_clt import D_SAE, clt_weights, write_clt

D, N = 6, 3
W = [{name: tensor.float().double() for name, tensor in layer.items()} for layer in clt_weights(N, D)]


def x(layer):
    return 2 * torch.randn(2, 5, D, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)


def loaded_of(ref):
    return [load_sae(each, dtype=torch.float64) for each in transcoders_of(str(ref), "all", N)]


def check(found, activation="jumprelu", skips=False):
    for layer, each in enumerate(found):
        w, member = W[layer], each.sae
        pre = x(layer) @ w["W_enc"] + w["b_enc"]
        acts = torch.where(pre > (w["threshold"] if activation == "jumprelu" else 0), pre.relu(), 0.0)
        torch.testing.assert_close(member.encode(x(layer)), acts, rtol=0, atol=1e-12)
        torch.testing.assert_close(member.decode(acts), acts @ w["W_dec"][:, 0] + w["b_dec"], rtol=0, atol=1e-12)
        ahead = member.ahead(acts)
        assert ahead.shape == (2, 5, N - 1 - layer, D)
        assert member.n_ahead == N - 1 - layer
        for k in range(member.n_ahead):
            torch.testing.assert_close(ahead[..., k, :], acts @ w["W_dec"][:, k + 1], rtol=0, atol=1e-12)
        skip = member.skip(x(layer))
        assert (skip is not None) == skips
        if skips:
            torch.testing.assert_close(skip, x(layer) @ w["W_skip"].T, rtol=0, atol=1e-12)
        assert isinstance(member, CrossLayerTranscoder)
        assert sparse(member) is member
        assert not any(p.requires_grad for p in member.parameters())


@pytest.mark.parametrize("threshold", [True, False], ids=["jumprelu", "relu"])
def test_circuit_tracers_layout_is_read_layer_by_layer(tmp_path: Path, threshold):
    folder = write_clt(tmp_path / "clt", W, threshold, feature_input_hook="hook_resid_mid", scan="org/clt")
    assert transcoders_of(str(folder), "all", N) == [f"{folder}/W_enc_{i}.safetensors" for i in range(N)]
    found = loaded_of(folder)
    check(found, "jumprelu" if threshold else "relu")
    assert [each.hookpoint for each in found] == [Hookpoint(layer, "mlp_out") for layer in range(N)]
    assert {each.sae.reads for each in found} == {"resid_mid"}
    assert {each.format for each in found} == {"circuit_tracer_clt"}
    assert found[0].architecture == f"{'jumprelu_' * threshold}cross_layer_transcoder"
    assert (found[0].model_name, found[0].d_in, found[0].d_sae) == ("tiny", D, D_SAE)
    assert len({each.fingerprint for each in found}) == N


def test_what_is_written_ahead_is_part_of_a_fingerprint(tmp_path: Path):
    folder = write_clt(tmp_path / "clt", W)
    before = [each.fingerprint for each in loaded_of(folder)]
    path = folder / "W_dec_0.safetensors"
    decoder = load_file(path)["W_dec_0"]
    decoder[3, 2, 1] += 1
    save_file({"W_dec_0": decoder}, path)
    after = [each.fingerprint for each in loaded_of(folder)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]


def gemma_scope(folder, *, affine=False, earlier=0.0):
    folder.mkdir(parents=True)
    for layer, w in enumerate(W):
        w_dec = torch.full((D_SAE, N, D), earlier, dtype=torch.float64)
        w_dec[:, layer:] = w["W_dec"]
        state = {"w_enc": w["W_enc"], "w_dec": w_dec, "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
        state |= {"threshold": w["threshold"]} | ({"affine_skip_connection": w["W_skip"].T} if affine else {})
        state = {name: tensor.float().contiguous() for name, tensor in state.items()}
        save_file(state, folder / f"params_layer_{layer}.safetensors")
    return folder


@pytest.mark.parametrize("affine", [True, False])
def test_gemma_scope_2s_layout_is_read_layer_by_layer(tmp_path: Path, affine):
    name = f"width_262k_l0_medium{'_affine' * affine}"
    folder = gemma_scope(tmp_path / "google" / "gemma-scope-2-1b-pt" / "clt" / name, affine=affine)
    found = loaded_of(folder)
    check(found, skips=affine)
    assert [each.hookpoint for each in found] == [Hookpoint(layer, "mlp_out") for layer in range(N)]
    assert {each.sae.reads for each in found} == {"mlp_in"}
    assert {each.model_name for each in found} == {"google/gemma-3-1b-pt"}
    assert found[0].architecture == f"jumprelu_{'skip_' * affine}cross_layer_transcoder"


def test_of_several_in_a_folder_one_is_named(tmp_path: Path):
    for size in ("medium", "big"):
        gemma_scope(tmp_path / "clt" / f"width_262k_l0_{size}")
    with pytest.raises(InputError, match="2 transcoders of layer 0"):
        transcoders_of(f"{tmp_path}/clt", "all", N)
    check(loaded_of(f"{tmp_path}/clt/*_big/*"))


def test_a_repository_is_fetched_a_layer_with_its_decoders_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder, asked = write_clt(tmp_path / "snapshot" / "sub", W), []
    held = sorted(path.relative_to(tmp_path / "snapshot").as_posix() for path in folder.rglob("*"))
    monkeypatch.setattr(hub, "_list", lambda repo, revision: ("0" * 40, held, True))
    monkeypatch.setattr(
        hub, "_download", lambda repo, revision, commit, files: asked.append(files) or tmp_path / "snapshot"
    )
    check(loaded_of("someone/clt/sub"))
    assert asked[1] == ["sub/W_enc_1.safetensors", "sub/config.yaml", "sub/W_dec_1.safetensors"]


def refused(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_part_of_one_and_one_of_another_depth_are_refused(tmp_path: Path):
    folder = str(write_clt(tmp_path / "clt", W))
    assert "it is put in whole, leave --transcoder-layers out" in refused(transcoders_of, folder, "0,2", N)
    assert "has a transcoder of layer 2, this model has layers 0 to 1" in refused(transcoders_of, folder, "all", 2)
    assert "has no layer 3, but 0-2; this model has layers 0 to 3" in refused(transcoders_of, folder, "all", 4)
    Path(folder, "W_enc_1.safetensors").unlink()
    assert "has no layer 1, but 0, 2" in refused(transcoders_of, folder, "all", N)
    assert "put in whole: give it with --transcoders" in refused(load_sae, folder)


def test_files_that_are_missing_damaged_or_something_else_are_refused(tmp_path: Path):
    def broken(name, change):
        folder = write_clt(tmp_path / name, W)
        change(folder)
        return refused(load_sae, f"{folder}/W_enc_1.safetensors")

    def saved(file, **tensors):
        return lambda folder: save_file(tensors, folder / file)

    assert "no W_dec_1.safetensors beside it" in broken("a", lambda f: (f / "W_dec_1.safetensors").unlink())
    assert "no config.yaml beside it" in broken("b", lambda f: (f / "config.yaml").unlink())
    flat = saved("W_dec_1.safetensors", W_dec_1=torch.zeros(D_SAE, D))
    assert "the decoder has shape (24, 6), expected [d_sae, later layers, d_out]" in broken("c", flat)
    wide = saved("W_dec_1.safetensors", W_dec_1=torch.zeros(D_SAE, 2, D + 1))
    assert "b_dec is torch.float32 of shape (6,)" in broken("d", wide)
    few = saved("W_dec_1.safetensors", W_dec_1=torch.zeros(D_SAE - 1, 2, D))
    assert "W_dec is torch.float32 of shape (23, 6)" in broken("e", few)
    other = saved("W_dec_1.safetensors", W_dec_1=torch.zeros(D_SAE, 2, D), W_skip_1=torch.zeros(D, D))
    assert "has W_skip_1, which this reader does not know" in broken("f", other)
    unlike = saved("W_dec_1.safetensors", W_dec_0=torch.zeros(D_SAE, 2, D))
    assert "has W_dec_0, which this reader does not know" in broken("g", unlike)
    kind = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    assert "has model_kind 'transcoder_set'" in broken("h", lambda f: (f / "config.yaml").write_text(kind))
    assert "cannot be read as safetensors" in broken("i", lambda f: (f / "W_dec_1.safetensors").write_bytes(b"x" * 40))


def test_what_writes_backwards_and_crosscoders_are_refused(tmp_path: Path):
    folder = gemma_scope(tmp_path / "clt" / "told")
    where = '"model.layers.0.pre_feedforward_layernorm.input"'
    (folder / "config.json").write_text(f'{{"affine_connection": false, "hf_hook_point_in": {where}}}')
    assert {each.sae.reads for each in loaded_of(folder)} == {"resid_mid"}
    (folder / "config.json").write_text('{"affine_connection": true}')
    assert "has no affine_skip_connection" in refused(load_sae, f"{folder}/params_layer_1.safetensors")
    folder = gemma_scope(tmp_path / "clt" / "width", earlier=0.1)
    assert "144 weights of w_dec write into layers below 1" in refused(load_sae, f"{folder}/params_layer_1.safetensors")
    load_sae(f"{folder}/params_layer_0.safetensors")
    folder = gemma_scope(tmp_path / "crosscoder" / "layer_7_13_17_width")
    assert "is a crosscoder" in refused(load_sae, f"{folder}/params_layer_1.safetensors")


def test_the_registrys_single_layers_are_refused_with_the_repository_of_the_whole():
    said = refused(load_sae, "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_0")
    assert "put the whole in with --transcoders mntss/clt-gemma-2-2b-2.5M" in said
