"""Every recipe that ships can be run as it stands, and the paper's hold the paper's settings."""

from pathlib import Path

import pytest

from saelora.config import build, read_yaml
from saelora.jobs import train_sae
from saelora.jobs.comparison import plan, recipe
from saelora.jobs.sweep_plan import expand, group_points, read_recipe
from saelora.saes import registry

RECIPES = Path(__file__).parents[2] / "recipes"
TIMING = sorted(RECIPES.glob("*/timing*.yaml"))
TRANSCODERS = RECIPES / "smollm" / "transcoders.yaml"
SWEEPS = sorted(
    p for p in RECIPES.glob("*/*.yaml") if not p.name.startswith(("saes_", "transcoders")) and p not in TIMING
)
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
# Of its timing experiment: model, SAE tokens, SAE learning rate, which its code derives from the width.
TIMED = {
    "timing_gemma": ("google/gemma-2-2b", 2_000_000_000, 2e-4 / (8 * 2304 / 2**14) ** 0.5),
    "timing_llama": ("meta-llama/Llama-3.2-1B", 4_000_000_000, 2e-4 / (8 * 2048 / 2**14) ** 0.5),
}
PUBLISHED_SAE = {
    "hookpoint": ["layers.12.resid_post"],
    "architecture": "topk",
    "expansion": 8,
    "d_sae": None,
    "k": 64,
    "batch_tokens": 1024,
    "passes": 1,
    "aux_coefficient": 0.0,
    "dead_after_tokens": 10_000_000,
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
    assert expand(read_recipe(path), str(path))
    assert f"saelora sweep recipes/{path.parent.name}/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_the_papers_recipe_has_its_settings_and_its_saes_exist(path: Path) -> None:
    points = expand(read_recipe(path), str(path))
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


def test_transcoders_of_every_layer_of_the_default_model_are_trained_as_the_recipe_says() -> None:
    config = build(train_sae.Config, read_yaml(TRANSCODERS), str(TRANSCODERS))
    train_sae.check(config)
    assert (config.model, config.data, config.transcoder_layers) == ("smollm2-135m-instruct", "sotu", "all")
    assert {recipe.is_transcoder for recipe in train_sae.recipes_of(config).values()} == {True}
    assert "saelora train-sae --config recipes/smollm/transcoders.yaml" in TRANSCODERS.read_text()


@pytest.mark.parametrize("path", TIMING, ids=name)
def test_timing_recipe_expands_and_says_how_it_is_run(path: Path) -> None:
    runs = plan.expand(recipe.read_recipe(path))
    assert {"local", "e2e", "lora"} <= {run.entry.method for run in runs}
    assert f"saelora compare recipes/{path.parent.name}/{path.name}" in path.read_text()


@pytest.mark.parametrize("stem", TIMED)
def test_the_papers_timing_recipe_has_its_settings(stem: str) -> None:
    path, (model, tokens, lr) = RECIPES / "paper" / f"{stem}.yaml", TIMED[stem]
    runs = plan.expand(recipe.read_recipe(path))
    configs = [(run, build(recipe.config_type(run.entry), run.values)) for run in runs]
    for _, config in configs:
        data = (config.data, config.subset, config.text_column)
        assert data == ("togethercomputer/RedPajama-Data-V2", "sample-10B", "raw_content")
        shared = (config.model, config.dtype, config.exempt, config.context, config.eval_tokens)
        assert shared == (model, "float32", ["none"], 1024, 1_000_000)
    saes = [config for run, config in configs if run.entry.kind == "sae"]
    assert [config.objective for config in saes] == ["local", "e2e"]
    for config in saes:
        assert {key: getattr(config, key) for key in PUBLISHED_SAE} == PUBLISHED_SAE
        assert config.tokens == tokens
        assert config.lr == pytest.approx(lr, rel=1e-3)
        assert config.warmup == pytest.approx(1000 * 1024 / tokens)
        assert config.warmup + config.decay == pytest.approx(1)
    lora = [(run, config) for run, config in configs if run.entry.name == "lora"]
    assert [run.start_share for run, _ in lora] == [i / 10 for i in range(1, 11)]
    assert {run.start_run for run, _ in lora} == {runs[0].id}
    for _, config in lora:
        published = {key: value for key, value in PUBLISHED.items() if key != "dtype"}
        assert {key: getattr(config, key) for key in published} == published
        assert (config.rank, config.placement, config.tokens, config.method) == (64, "all", 15_000_000, "lora")
        assert config.betas == (0.9, 0.999)


@pytest.mark.parametrize("stem", ["timing", "timing_gpu"])
def test_the_default_models_timing_recipe_compares_every_method_at_equal_tokens(stem: str) -> None:
    path = RECIPES / "smollm" / f"{stem}.yaml"
    runs = plan.expand(recipe.read_recipe(path))
    methods = {"lora", "lora+sae", "linear", "finetune-sae"}
    assert {run.entry.method for run in runs} == methods | {"local", "e2e", "e2e+downstream"}
    finished = [run for run in runs if run.entry.kind == "method" and run.start_share in (1.0, None)]
    for seed in (0, 1, 2):
        compared: dict[tuple[str | None, int], set[str]] = {}
        for run in finished:
            if run.seed == seed:
                start = run.start_ref or (run.start_run and run.entry.start and run.entry.start.name)
                compared.setdefault((start, run.budget), set()).add(run.entry.method)
        assert methods in compared.values()
