"""Every recipe that ships can be run as it stands, and the paper's hold the paper's settings."""

from pathlib import Path

import pytest

from saelora.config import build, read_yaml
from saelora.jobs import train_sae
from saelora.jobs.sweep_plan import Recipe, expand, group_points, read_recipe
from saelora.saes import registry

RECIPES = Path(__file__).parents[2] / "recipes"
SWEEPS = sorted(p for p in RECIPES.glob("*/*.yaml") if not p.name.startswith("saes_"))
PAPER = [p for p in SWEEPS if p.parent.name == "paper"]
# arXiv 2501.19406 and its published code
PUBLISHED = {
    "alpha": 32,
    "dropout": 0.1,
    "lr": 5e-5,
    "schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.01,
    "clip": 1.0,
    "loss": "sequence_sum",
    "context": 1024,
    "batch_rows": 1,
    "eval_tokens": 1_000_000,
    "dtype": "bfloat16",
}
N_POINTS = {"sparsity": 25, "width": 30, "layer": 25, "single_layer": 14, "model_size": 15, "n_saes": 7}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_the_papers_experiments_are_there_each_with_a_version_for_the_default_model() -> None:
    assert {path.stem for path in PAPER} == set(N_POINTS)
    own = {path.stem for path in SWEEPS if path.parent.name == "smollm"}
    assert own == set(N_POINTS) - {"model_size"} | {"rank"}  # the default model has one size


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_recipe_expands_and_says_how_it_is_run(path: Path) -> None:
    recipe = read_recipe(path)
    assert expand(recipe, str(path))
    assert f"saelora sweep recipes/{path.parent.name}/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_the_papers_recipe_has_its_settings_and_its_saes_exist(path: Path) -> None:
    recipe: Recipe = read_recipe(path)
    points = expand(recipe, str(path))
    assert len(points) == N_POINTS[path.stem]
    for point in points:
        assert {key: getattr(point.config, key) for key in PUBLISHED} == PUBLISHED
        assert point.config.betas == (0.9, 0.999)
        assert point.config.tokens == (30_000_000 if path.stem == "n_saes" else 15_000_000)
        assert all(registry.find(ref) is not None for ref in point.config.sae), point.config.sae
    models = {point.config.model for point in points}
    assert len(group_points(points)) == len(models)  # all that shares a model shares its passes


def test_every_jth_layer_is_what_the_paper_splices() -> None:
    points = expand(read_recipe(RECIPES / "paper" / "n_saes.yaml"), "n_saes")
    assert [len(point.config.sae) for point in points] == [1, 2, 3, 5, 7, 10, 15]
    own = expand(read_recipe(RECIPES / "smollm" / "n_saes.yaml"), "n_saes")
    assert [len(point.config.sae) for point in own] == [1, 2, 3, 4, 9]
    assert all(point.config.placement == "all" for point in [*points, *own])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("smollm/saes_*.yaml")), ids=name)
def test_saes_that_sweeps_name_are_made_by_the_recipe_they_name(path: Path) -> None:
    config = build(train_sae.Config, read_yaml(path), str(path))
    made = {f"{h}/{v}" for h in config.hookpoint for v in config.variant} or set(config.hookpoint)
    users = [p for p in SWEEPS if f"train_sae: {path.name}" in p.read_text()]
    assert users
    for user in users:
        for point in expand(read_recipe(user), str(user)):
            assert {ref.removeprefix("{saes}/") for ref in point.config.sae} <= made
