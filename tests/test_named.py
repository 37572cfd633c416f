"""What a configuration names is looked at before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from saelora.errors import InputError
from saelora.jobs import adapt, evaluate, train_sae
from saelora.named import check_named

HUB = {"model": "someone/model", "sae": ["someone/sae", "release/layer_3/width_16k"], "data": "someone/data"}


def test_names_that_may_be_a_hub_s_are_left_to_the_loaders() -> None:
    check_named(adapt.Config(**HUB))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": None}, "no model given"),
        ({"model": "./nowhere"}, "model ./nowhere does not exist"),
        ({"model": "~/nowhere/model"}, "does not exist"),
        ({"model": "nowhere.gguf"}, "does not exist"),
        ({"model": "x" * 5000}, "model x{200}... does not exist"),
        ({"sae": []}, "no SAE given"),
        ({"sae": ["./nowhere"]}, "SAE ./nowhere does not exist"),
        ({"hookpoint": ["layers.1.mlp_out"]}, "1 --hookpoint for 2 --sae"),
        ({"data": None}, "no data given"),
        ({"data": "nowhere.txt"}, "data nowhere.txt does not exist"),
        ({"data": "/nowhere/at/all"}, "data /nowhere/at/all does not exist"),
    ],
)
def test_what_is_not_there_is_said(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_named(adapt.Config(**{**HUB, **changed}))


def test_a_run_s_folder_as_model_names_the_option_it_belongs_to(tmp_path: Path) -> None:
    (tmp_path / "saelora.json").write_text(json.dumps({"model": {"ref": "the/model"}}))
    values: dict[str, Any] = {**HUB, "model": str(tmp_path)}
    with pytest.raises(InputError, match=f"the folder of a saelora run, .*did you mean --adapter {tmp_path}"):
        check_named(evaluate.Config(**values))
    with pytest.raises(InputError, match="it was made on the/model: give that"):
        check_named(adapt.Config(**values))
    (tmp_path / "saelora.json").write_text("{damaged")
    with pytest.raises(InputError, match="is the folder of a saelora run"):
        check_named(adapt.Config(**values))


@pytest.mark.parametrize("file", ["cfg.json", "training.json"])
def test_an_sae_s_folder_as_model_is_told_from_a_model(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(InputError, match="holds SAEs, not a model: name them with --sae"):
        check_named(adapt.Config(**{**HUB, "model": str(tmp_path)}))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds SAEs, not a model: go on from one with --start"):
        check_named(train_sae.Config(model=str(tmp_path), hookpoint=["layers.1.mlp_out"], data="someone/data"))
    (tmp_path / "config.json").write_text("{}")
    check_named(adapt.Config(**{**HUB, "model": str(tmp_path)}))  # type: ignore[arg-type]
