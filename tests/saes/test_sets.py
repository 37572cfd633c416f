"""Which transcoders one name stands for: local folders, registry releases, hub repositories in the cache."""

from pathlib import Path

import pytest

from saelora.errors import InputError
from saelora.saes import hub
from saelora.saes.sets import chosen_layers, transcoders_of


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", [0, 1, 2, 3, 4, 5]), ("every:2", [0, 2, 4]), ("5,1-3,2", [1, 2, 3, 5]), ("every:9", [0])],
)
def test_layers_are_all_every_jth_or_those_named(text, layers):
    assert chosen_layers(text, 6) == layers


def test_a_layer_that_the_model_does_not_have_is_refused():
    with pytest.raises(InputError, match="names layer 6: this model has layers 0 to 5"):
        chosen_layers("4-6", 6)


def filled(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_a_folder_of_layer_files_gives_them_in_the_order_of_layers(tmp_path: Path):
    root = filled(tmp_path, "config.yaml", *(f"layer_{i}.safetensors" for i in range(12)))
    assert transcoders_of(str(root), "all", 12) == [f"{root}/layer_{i}.safetensors" for i in range(12)]
    assert transcoders_of(str(root), "10,2", 12) == [f"{root}/layer_{i}.safetensors" for i in (2, 10)]


def test_folders_of_one_transcoder_each_tell_their_layers(tmp_path: Path):
    files = [f"layers.{i}.mlp/{file}" for i in range(3) for file in ("sae.safetensors", "cfg.json")]
    root = filled(tmp_path, *files)
    assert transcoders_of(str(root), "every:2", 3) == [f"{root}/layers.0.mlp", f"{root}/layers.2.mlp"]


def test_several_of_a_layer_need_a_pattern(tmp_path: Path):
    files = [f"layer_{i}_width_16k_l0_{size}/params.safetensors" for i in range(2) for size in ("big", "small")]
    root = filled(tmp_path, *files)
    with pytest.raises(InputError, match=r"2 transcoders of layer 0.*say which by a name with"):
        transcoders_of(str(root), "all", 2)
    expected = [f"{root}/layer_{i}_width_16k_l0_small" for i in range(2)]
    assert transcoders_of(f"{root}/layer_*_small", "all", 2) == expected


def test_releases_of_the_registry_are_sets():
    assert transcoders_of("mwhanna-qwen3-4b-transcoders", "every:12", 36) == [
        f"mwhanna-qwen3-4b-transcoders/layer_{i}" for i in (0, 12, 24)
    ]
    release = "gemma-scope-2-4b-pt-transcoders-all"
    with pytest.raises(InputError, match="transcoders of layer 0, such as"):
        transcoders_of(release, "all", 34)
    found = transcoders_of(f"{release}/layer_*_width_16k_l0_small_affine", "all", 34)
    assert found == [f"{release}/layer_{i}_width_16k_l0_small_affine" for i in range(34)]
    with pytest.raises(InputError, match="has a transcoder of layer 35, this model has layers 0 to 29"):
        transcoders_of("mwhanna-qwen3-4b-transcoders", "all", 30)


def test_a_hub_repository_is_a_set(monkeypatch: pytest.MonkeyPatch):
    held = ["README.md", "config.yaml", *(f"set/layer_{i}.safetensors" for i in range(3))]
    monkeypatch.setattr(hub, "paths_of", lambda repo: held if repo == "someone/plt" else [])
    expected = [f"someone/plt/set/layer_{i}.safetensors" for i in range(3)]
    assert transcoders_of("someone/plt", "all", 3) == expected
    assert transcoders_of("someone/plt/set", "all", 3) == expected


def test_what_is_no_set_is_said(tmp_path: Path):
    with pytest.raises(InputError, match="no existing folder, no release of SAELens's registry and no hub repository"):
        transcoders_of("nothing", "all", 3)
    with pytest.raises(InputError, match="holds no transcoders whose names tell their layers"):
        transcoders_of(str(filled(tmp_path, "notes.txt")), "all", 3)
