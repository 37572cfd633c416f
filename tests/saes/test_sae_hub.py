"""Hub repositories and SAELens' registry, through the real hub client against a cache or a server of our own."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import sae_files as files
from hub_server import Files, Hub, reach, running
from sae_files import weights
from saelora.errors import InputError
from saelora.saes import registry
from saelora.saes.loading import load_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, hub switched off."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def put_into_cache(cache: Path, repo: str, source: Path) -> None:
    storage = cache / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    shutil.copytree(source, storage / "snapshots" / COMMIT)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as server:
        reach(server, tmp_path / "cache", monkeypatch)
        yield server


def as_files(root: Path) -> Files:
    return {str(p.relative_to(root).as_posix()): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refused(ref: str, **kwargs: str) -> str:
    with pytest.raises(InputError) as caught:
        load_sae(ref, **kwargs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_repository_is_read_at_its_commit_and_only_the_named_sae_is_fetched(tmp_path: Path, hub: Hub) -> None:
    inner = "layer_12/width_16k/average_l0_82"
    local = files.write_gemma_scope(tmp_path / "gemma-scope-2b-pt-mlp" / inner, weights(3))
    files.write_gemma_scope(tmp_path / "gemma-scope-2b-pt-mlp" / "layer_13/width_16k/average_l0_9", weights(4))
    hub.hold("google/gemma-scope-2b-pt-mlp", as_files(tmp_path / "gemma-scope-2b-pt-mlp"), COMMIT)
    ref = f"google/gemma-scope-2b-pt-mlp/{inner}"
    loaded = load_sae(ref)
    assert (loaded.revision, loaded.format, loaded.ref) == (COMMIT, "gemma_scope", ref)
    assert str(loaded.hookpoint) == "layers.12.mlp_out"
    assert loaded.fingerprint == load_sae(str(local)).fingerprint
    assert {line.rpartition("/resolve/")[2] for line in hub.sent("/resolve/")} == {f"{COMMIT}/{inner}/params.npz"}
    assert load_sae(f"{ref}/params.npz", revision="main").fingerprint == loaded.fingerprint


def test_sparsify_repository_brings_its_run_configuration(tmp_path: Path, hub: Hub) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    for name in ("layers.1", "layers.2.mlp"):
        SparseCoder(6, SparseCoderConfig(k=2, num_latents=8)).save_to_disk(tmp_path / "repo" / name)
    (tmp_path / "repo" / "config.json").write_text('{"sae": {}, "model": "some/model"}')
    hub.hold("EleutherAI/sae-tiny", as_files(tmp_path / "repo"), COMMIT)
    loaded = load_sae("EleutherAI/sae-tiny/layers.2.mlp")
    assert (str(loaded.hookpoint), loaded.model_name) == ("layers.2.mlp_module_out", "some/model")
    assert "choices: layers.1, layers.2.mlp" in refused("EleutherAI/sae-tiny")
    assert "has no folder 'layers.2.mpl': expected one such as layers.2.mlp" in refused(
        "EleutherAI/sae-tiny/layers.2.mpl"
    )


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (404, "RepoNotFound", "check the spelling, or log in with `hf auth login`"),
        (403, "GatedRepo", "accept its licence at https://huggingface.co/owner/name"),
        (503, "", "cannot be reached|cannot be read"),
    ],
)
def test_refusals_of_the_hub_name_the_remedy(hub: Hub, status: int, code: str, remedy: str) -> None:
    import re

    hub.failing["GET /api/models/owner/name"] = (status, None, code)
    message = refused("owner/name/sae")
    assert re.search(remedy, message)
    assert "owner/name" in message


def test_unknown_revision_is_named(tmp_path: Path, hub: Hub) -> None:
    hub.hold("owner/name", as_files(files.write_saelens(tmp_path / "sae", weights())), COMMIT)
    assert load_sae("owner/name").revision == COMMIT
    assert "no revision v9" in refused("owner/name", revision="v9")


def test_offline_reads_the_cache_with_its_commit(tmp_path: Path, cache: Path) -> None:
    source = files.write_saelens(tmp_path / "repo" / "blocks.3", weights()).parent
    put_into_cache(cache, "owner/name", source)
    for ref in ("owner/name", "owner/name/blocks.3"):
        loaded = load_sae(ref)
        assert (loaded.revision, str(loaded.hookpoint)) == (COMMIT, "layers.3.resid_post")
    assert load_sae("owner/name", revision=COMMIT).revision == COMMIT


def test_offline_without_cache_says_so_and_suggests_the_release_that_was_meant(cache: Path) -> None:
    message = refused("owner/name/sae")
    assert "not in the local cache" in message
    assert "unset HF_HUB_OFFLINE" in message
    assert "did you mean the SAELens release gpt2-small-res-jb" in refused("gpt2-smal-res-jb/blocks.8.hook_resid_pre")


def test_registry_release_loads_through_saelens_with_its_commit(tmp_path: Path, cache: Path) -> None:
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"}
    source = files.write_saelens(tmp_path / "repo" / "blocks.8.hook_resid_pre", weights(), metadata=metadata).parent
    files.write_saelens(source / "blocks.8.hook_resid_pre", weights(), metadata=metadata)
    (source / "blocks.8.hook_resid_pre" / "sparsity.safetensors").write_bytes(_sparsity())
    put_into_cache(cache, "jbloom/GPT2-Small-SAEs-Reformatted", source)
    loaded = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert (loaded.format, loaded.revision) == ("saelens", COMMIT)
    assert str(loaded.hookpoint) == "layers.8.resid_pre"
    assert loaded.fingerprint == load_sae(str(source / "blocks.8.hook_resid_pre")).fingerprint


GPT2 = "jbloom/GPT2-Small-SAEs-Reformatted"
CENTRED = {"center_writing_weights": True}


@pytest.mark.parametrize("version", ["6.54.12", None])
@pytest.mark.parametrize("by", ["release", "repository", "folder of the cache"])
def test_what_the_registry_knows_better_reaches_the_sae_by_every_name(
    tmp_path: Path, cache: Path, by: str, version: str | None
) -> None:
    inner = "blocks.8.hook_resid_pre"
    source = files.write_saelens(tmp_path / "repo" / inner, weights())
    if version is None:  # as SAELens before 6 wrote it
        flat = {"d_in": 6, "d_sae": 20, "dtype": "float32", "hook_name": inner, "architecture": "jumprelu"}
        (source / "cfg.json").write_text(json.dumps(flat))
    (source / "sparsity.safetensors").write_bytes(_sparsity())
    put_into_cache(cache, GPT2, source.parent)
    cached = cache / f"models--{GPT2.replace('/', '--')}" / "snapshots" / COMMIT / inner
    ref = {"release": f"gpt2-small-res-jb/{inner}", "repository": f"{GPT2}/{inner}"}.get(by, str(cached))
    assert load_sae(ref).metadata["model_from_pretrained_kwargs"] == CENTRED
    assert "model_from_pretrained_kwargs" not in load_sae(str(source)).metadata or version is None


def test_a_normalisation_and_a_scale_that_only_the_registry_has_are_used(tmp_path: Path, cache: Path) -> None:
    inner = "mistral_7b_layer_8"
    source = files.write_saelens(tmp_path / "repo" / inner, weights())
    (source / "sparsity.safetensors").write_bytes(_sparsity())
    put_into_cache(cache, "JoshEngels/Mistral-7B-Residual-Stream-SAEs", source.parent)
    for ref in ("mistral-7b-res-wg/blocks.8.hook_resid_pre", f"JoshEngels/Mistral-7B-Residual-Stream-SAEs/{inner}"):
        assert load_sae(ref).metadata["normalize_activations"] == "constant_norm_rescale"
    entry = next(e for e in registry_entries() if e.scale is not None and e.loader == "sae_lens")
    scaled = files.write_saelens(
        tmp_path / "scaled" / entry.path, weights(), normalize_activations="expected_average_only_in"
    )
    put_into_cache(cache, entry.repo, tmp_path / "scaled")
    by_file = json.dumps({"scaling_factor": entry.scale})
    (scaled / "activation_scaler.json").write_text(by_file)
    assert load_sae(f"{entry.release}/{entry.sae_id}").fingerprint == load_sae(str(scaled)).fingerprint


def test_a_layer_of_a_set_of_transcoders_is_read_from_the_cache(tmp_path: Path, cache: Path) -> None:
    import torch
    from safetensors.torch import save_file

    entry = next(e for e in registry_entries() if e.loader == "mwhanna_transcoder")
    w = {key: value.float().contiguous() for key, value in weights().items() if key != "threshold"}
    (tmp_path / "repo").mkdir()
    save_file({**w, "W_enc": w["W_enc"].T.contiguous()}, tmp_path / "repo" / entry.path)
    (tmp_path / "repo" / "wandb-config.yaml").write_text("d_model: {value: 6}\n")
    put_into_cache(cache, entry.repo, tmp_path / "repo")
    for ref in (f"{entry.release}/{entry.sae_id}", f"{entry.repo}/{entry.path}"):
        loaded = load_sae(ref)
        assert (loaded.format, loaded.architecture, str(loaded.hookpoint)) == (
            "circuit_tracer",
            "transcoder",
            f"layers.{entry.sae_id.removeprefix('layer_')}.mlp_out",
        )
        assert torch.equal(loaded.sae.W_enc, w["W_enc"])


def registry_entries() -> Iterator[registry.Entry]:
    for release, data in registry.releases().items():
        for sae in data["saes"]:
            yield registry._entry(release, data, sae)


def test_every_loader_of_the_registry_is_read_here_accounted_for_or_refused() -> None:
    refused_loaders = {"temporal", "mntss_clt_layer_transcoder"}
    whole = {"connor_rob_hook_z"}  # SAELens hands on every tensor
    loaders = {entry.loader: entry for entry in registry_entries()}
    for loader, entry in loaders.items():
        assert entry.readable or loader in registry._FOREIGN or loader in refused_loaders | whole, loader


def test_a_tensor_that_saelens_would_leave_out_is_refused(tmp_path: Path, cache: Path) -> None:
    import torch
    from safetensors.torch import save_file

    entry = next(e for e in registry_entries() if e.loader == "llama_scope_r1_distill")
    sizes = {"encoder.weight": (24, 6), "decoder.weight": (6, 24), "encoder.bias": (24,), "decoder.bias": (6,)}
    state = {name: torch.randn(*size) for name, size in {**sizes, "log_jumprelu_threshold": (24,)}.items()}
    folder = tmp_path / "repo" / entry.path
    folder.mkdir(parents=True)
    cfg = {"d_model": 6, "expansion_factor": 4, "hook_point_in": "blocks.3.hook_resid_post"}
    (folder / "config.json").write_text(json.dumps(cfg))
    save_file(state, folder / "sae_weights.safetensors")
    put_into_cache(cache, entry.repo, tmp_path / "repo")
    ref = f"{entry.release}/{entry.sae_id}"
    assert load_sae(ref).architecture == "jumprelu"
    cached = cache / f"models--{entry.repo.replace('/', '--')}" / "snapshots" / COMMIT / entry.path
    save_file({**state, "gain": torch.ones(24)}, cached / "sae_weights.safetensors")
    assert "has gain" in refused(ref)


def _sparsity() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"sparsity": torch.zeros(20)})


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("gpt2-small-res-jb", lambda m: "has several SAEs" in m and "gpt2-small-res-jb/blocks.0.hook_resid_pre" in m),
        ("gpt2-small-res-jb/blocks.8.hook_resid_pro", lambda m: "gpt2-small-res-jb/blocks.8.hook_resid_pre" in m),
        ("gpt2-smal-res-jb", lambda m: "did you mean the SAELens release gpt2-small-res-jb" in m),
        ("no-such-thing", lambda m: "no existing path" in m),
        ("gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76", lambda m: "not in the local cache" in m),
        ("mwhanna-qwen3-4b-transcoders/layer_0", lambda m: "not in the local cache" in m),
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", lambda m: "not in the local cache" in m),
        ("", lambda m: "no existing path" in m),
    ],
)
def test_wrong_registry_names_get_near_matches_without_a_download(
    cache: Path, ref: str, said: Callable[[str], bool]
) -> None:
    message = refused(ref)
    assert said(message), message


def test_registry_release_takes_no_revision(cache: Path) -> None:
    message = refused("gpt2-small-res-jb/blocks.8.hook_resid_pre", revision="main")
    assert "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre" in message
