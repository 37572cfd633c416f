"""A comparison's recipe: what it expands to, and that a mistake in it is one clear line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from saelora.config import build
from saelora.errors import InputError
from saelora.jobs.comparison.plan import Run, entries_named, expand
from saelora.jobs.comparison.recipe import ComparisonRecipe, config_type, read_recipe

BASE = {"model": "m", "data": "d", "context": 128, "device": "cpu"}
LOCAL = {"objective": "local", "hookpoint": ["layers.1.resid_post"], "tokens": "4k", "checkpoints": [0.5, 0.25]}
E2E = {"objective": "e2e", "hookpoint": ["layers.1.resid_post"], "tokens": "2k"}
LORA = {"method": "lora", "from": "local", "rank": 4, "tokens": ["1k", "2k"]}
LINEAR = {"method": "linear", "from": "local@0.25", "tokens": "1k"}


def recipe_of(tmp_path: Path, *overrides: str, **changes: Any) -> ComparisonRecipe:
    """The recipe of the small comparison above, with top-level keys changed."""
    small = {
        "base": BASE,
        "seeds": [0, 1],
        "saes": {"local": LOCAL, "e2e": E2E},
        "methods": {"lora": LORA, "linear-map": LINEAR},
    }
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**small, **changes}, sort_keys=False))
    return read_recipe(file, overrides)


def runs_of(tmp_path: Path, *overrides: str, **changes: Any) -> list[Run]:
    return expand(recipe_of(tmp_path, *overrides, **changes))


def test_a_method_branches_off_each_checkpoint_with_each_budget_and_seed(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    found = [(run.entry.name, run.seed, run.budget, run.start_share) for run in runs]
    assert found == [
        row
        for seed in (0, 1)
        for row in (
            ("local", seed, 4000, None),
            ("e2e", seed, 2000, None),
            *(("lora", seed, budget, share) for budget in (1000, 2000) for share in (0.25, 0.5, 1.0)),
            ("linear-map", seed, 1000, 0.25),
        )
    ]


def test_every_start_is_the_sae_of_the_same_seed_and_comes_first(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    seen: dict[str, Run] = {}
    for run in runs:
        if run.entry.kind == "method":
            assert run.start_run is not None
            assert run.start_ref is None
            assert seen[run.start_run].entry.name == "local"
            assert seen[run.start_run].seed == run.seed
        seen[run.id] = run
    assert len(seen) == len(runs)


def test_a_method_branches_off_every_budget_of_an_sae(tmp_path: Path) -> None:
    saes = {"local": {**LOCAL, "tokens": ["2k", "4k"]}}
    runs = runs_of(tmp_path, saes=saes, methods={"lora": {**LORA, "tokens": "1k"}}, seeds=0)
    by_id = {run.id: run for run in runs}
    starts = [(by_id[run.start_run].budget, run.start_share) for run in runs if run.start_run]
    assert starts == [(budget, share) for budget in (2000, 4000) for share in (0.25, 0.5, 1.0)]


def test_what_is_no_entry_is_an_sae_from_elsewhere(tmp_path: Path) -> None:
    ref = "release/layer_12@main"
    (run,) = runs_of(tmp_path, saes={}, methods={"lora": {"from": ref, "tokens": 100}}, seeds=3)
    assert (run.start_ref, run.start_run, run.start_share, run.seed) == (ref, None, None, 3)
    assert run.entry.method == "lora"


def test_runs_hold_all_options_of_their_job(tmp_path: Path) -> None:
    for run in runs_of(tmp_path):
        config = build(config_type(run.entry), run.values)
        assert (config.model, config.context, config.tokens, config.seed) == ("m", 128, run.budget, run.seed)
        assert "lr" not in run.values


def test_one_lr_is_fixed_several_are_left_to_choose_from(tmp_path: Path) -> None:
    saes = {"local": {**LOCAL, "lr": 1e-3}, "e2e": {**E2E, "lr": ["1e-3", "3e-3"]}}
    local, e2e = runs_of(tmp_path, saes=saes, methods={}, seeds=0, tune={"tokens": "1k", "eval_tokens": 500})
    assert local.values["lr"] == 1e-3
    assert "lr" not in e2e.values
    assert e2e.entry.lr == (1e-3, 3e-3)


def test_an_option_over_the_base_leaves_what_entries_say_and_one_without_a_place_does_not(tmp_path: Path) -> None:
    changes = {"saes": {"local": {**LOCAL, "context": 16}, "e2e": E2E}, "methods": {}, "seeds": 0}
    for override, expected in (("base.context=64", [16, 64]), ("context=64", [64, 64])):
        assert [run.values["context"] for run in runs_of(tmp_path, override, **changes)] == expected


TUNED = {"saes": {"local": {**LOCAL, "lr": [1e-3, 3e-3]}}, "methods": {"lora": {**LORA, "tokens": 100}}, "seeds": 0}
TUNED |= {"tune": {"tokens": 1000, "eval_tokens": 500}}


@pytest.mark.parametrize(
    "change",
    ["tune.tokens=2k", "saes.local.lr=[1e-3,2e-3]", "saes.local.tokens=5k", "saes.local.k=16", "evaluations=3",
     "context=64", "seeds=[1]", "saes.local.checkpoints=[0.5]"],
)  # fmt: skip
def test_ids_change_with_all_that_bears_on_the_result_of_a_run_or_of_its_start(tmp_path: Path, change: str) -> None:
    before, after = runs_of(tmp_path, **TUNED), runs_of(tmp_path, change, **TUNED)
    assert not {run.id for run in before} & {run.id for run in after}


@pytest.mark.parametrize("change", ["methods.lora.rank=8", "methods.lora.tokens=200", "methods.lora.from=local@1.0"])
def test_ids_of_saes_do_not_change_with_what_starts_from_them(tmp_path: Path, change: str) -> None:
    (sae, *before), (same, *after) = runs_of(tmp_path, **TUNED), runs_of(tmp_path, change, **TUNED)
    assert sae.id == same.id
    assert len(after) == 1 or not {run.id for run in before} & {run.id for run in after}


def test_ids_do_not_change_with_the_machine_or_the_order(tmp_path: Path) -> None:
    before = {run.id for run in runs_of(tmp_path)}
    methods = {"linear-map": LINEAR, "lora": LORA}
    after = runs_of(tmp_path, base={**BASE, "device": "cuda", "quiet": True}, methods=methods, seeds=[1, 0])
    assert {run.id for run in after} == before


def test_tuning_bears_only_on_what_is_tuned(tmp_path: Path) -> None:
    assert runs_of(tmp_path) == runs_of(tmp_path, tune={"tokens": 1000, "eval_tokens": 500})


def test_set_changes_every_entry_or_the_one_it_names(tmp_path: Path) -> None:
    methods = {"lora": {**LORA, "context": 64}, "linear-map": {**LINEAR, "seeds": [1]}}
    recipe = recipe_of(tmp_path, "context=32", "methods.linear-map.tokens=[5k,6k]", "seeds=[0]", methods=methods)
    local, _, lora, linear = recipe.entries
    assert [entry.values["context"] for entry in (local, lora)] == [32, 32]
    assert (linear.budgets, lora.budgets) == ((5000, 6000), (1000, 2000))
    assert all(entry.seeds == (0,) for entry in recipe.entries)


def test_only_runs_what_is_named_and_the_saes_it_starts_from(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert [entry.name for entry in entries_named(recipe, ["lora"])] == ["local", "lora"]
    assert [entry.name for entry in entries_named(recipe, ["e2e"])] == ["e2e"]
    assert entries_named(recipe, []) == list(recipe.entries)
    with pytest.raises(InputError, match="no 'lara' to run: expected one of local, e2e, lora, linear-map"):
        entries_named(recipe, ["lara"])


def sae(**options: Any) -> dict[str, Any]:
    return {"saes": {"local": {**LOCAL, **options}}}


def method(**options: Any) -> dict[str, Any]:
    return {"methods": {"lora": {**LORA, **options}}}


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "key": ({"method": {}}, (), "unknown key 'method' in .*r.yaml; did you mean 'methods'"),
    "option": (method(rnak=3), (), "unknown key 'rnak' in methods.lora of .*did you mean 'rank'"),
    "sae option": (sae(expnsion=3), (), "unknown key 'expnsion' in saes.local of .*did you mean 'expansion'"),
    "base": ({"base": {**BASE, "rank": 3}}, (), "unknown key 'rank' in base of"),
    "value": (method(rank="many"), (), "rank: got 'many', expected a whole number"),
    "no model": ({"base": {"data": "d"}}, (), "saes.local of .* names no model: give it under base"),
    "no tokens": (method(tokens=[]), (), "methods.lora of .* needs tokens"),
    "tokens": (sae(tokens="lots"), (), "tokens of saes.local of .*got 'lots'"),
    "budget twice": (method(tokens=["1k", 1000]), (), "tokens of methods.lora of .* twice"),
    "nothing": ({"saes": {}, "methods": None}, (), "names nothing to compare"),
    "list": ({"saes": ["local"]}, (), r"saes of .* is \['local'\], expected name:"),
    "entry": (
        {"saes": {"local": "e2e"}},
        (),
        "saes of .* is {'local': 'e2e'}, expected name: {option: value",
    ),
    "base list": ({"base": ["model"]}, (), r"base of .* is \['model'\], expected option: value lines"),
    "seed": ({"seeds": -1}, (), "seeds of .*r.yaml is -1, expected a number from 0"),
    "method": (method(method="lroa"), (), "got 'lroa', expected one of lora, linear, lora.sae, finetune-sae"),
    "objective": (sae(objective="kl"), (), "objective of saes.local .*got 'kl', expected one of local, e2e"),
    "two hookpoints": (sae(hookpoint=["layers.1.mlp_out", "layers.2.mlp_out"]), (), "expected one"),
    "no hookpoint": (sae(hookpoint=[]), (), r"hookpoint of saes.local of .* is \[\], expected one"),
    "checkpoint": (sae(checkpoints=[0, 0.5]), (), "expected shares above 0, up to 1"),
    "decided": (method(sae=["x"]), (), "methods.lora of .* sets sae, which the comparison decides: give from"),
    "from": (method(**{"from": None}), (), "from of methods.lora of .* is None, expected"),
    "from typo": (method(**{"from": "locla@0.5"}), (), "no such entry of saes; did you mean 'local'"),
    "share": (method(**{"from": "local@0.7"}), (), r"but the checkpoints of local are \[0.25, 0.5, 1.0\]"),
    "seed of no SAE": (
        method(seeds=[0, 7]),
        (),
        r"has seed 7, but the SAE that it starts from, local, has \[0, 1\]",
    ),
    "no tune": (method(lr=[1e-3, 2e-3]), (), "methods.lora of .* has several lr to choose from, but there is no tune"),
    "tune": ({"tune": {"tokens": 100}}, (), "tune of .*expected tokens and eval_tokens"),
    "tune key": ({"tune": {"token": 100}}, (), "unknown key 'token' in tune of .*did you mean 'tokens'"),
    "evaluations": ({"evaluations": 0}, (), "evaluations of .* is 0, expected 1 or more"),
    "same name": ({"methods": {"local": LORA}}, (), "'local' under saes and under methods"),
    "set": ({}, ("rank",), "expected KEY=VALUE, such as --set context=128"),
    "set entry": ({}, ("methods.lara.rank=3",), "there is no 'lara' under methods, but lora, linear-map"),
    "set where": ({}, ("lora.rank=3",), "expected KEY=VALUE, such as"),
    "set mapping": ({}, ("base=", "context=3"), "--set base is None, expected option: value lines"),
    "set option": ({}, ("methods.lora.rnak=3",), "did you mean 'rank'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_clear_line(tmp_path: Path, case: str) -> None:
    changes, overrides, expected = BAD[case]
    with pytest.raises(InputError, match=expected) as caught:
        expand(recipe_of(tmp_path, *overrides, **changes))
    assert "\n" not in str(caught.value)
