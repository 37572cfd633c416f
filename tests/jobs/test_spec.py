"""Whatever stands in a recipe and in --set, it is runs or one line; never a traceback."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saelora.errors import InputError
from saelora.jobs import sweep_plan
from saelora.jobs.comparison import plan, recipe

KEYS = ["title", "x", "series", "base", "grid", "points", "train_sae", "arms", "seeds", "evaluations", "tune", "saes"]
KEYS += ["methods", "local", "rank", "lr", "tokens", "eval-tokens", "from", "method", "objective", "hookpoint", "k"]
PLAIN = [None, "", 0, -1, 1.5, "4k", "lora", "local@0.5", True, float("nan"), 10**30, "a\nb", [], {}, [1, 1], [None]]
VALUES = st.recursive(
    st.sampled_from(PLAIN),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
SETS = st.lists(st.sampled_from([*KEYS, "grid.rank", "base.k", "saes.local.k", "a.b.c", ".x", "x."]), max_size=2)
SWEEP = {"base": {"model": "m", "data": "d", "sae": ["s"], "tokens": 100}}
ENTRIES = {"saes": {"local": {"hookpoint": "layers.1.resid_post", "tokens": "4k"}}}
SAME_FOLDER = [HealthCheck.function_scoped_fixture]  # each example writes its recipe over the last one
COMPARISON = {"base": {"model": "m", "data": "d"}, **ENTRIES, "methods": {"lora": {"from": "local", "tokens": 10}}}


@pytest.mark.parametrize("good", [SWEEP, COMPARISON], ids=["sweep", "comparison"])
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3), sets=SETS, value=VALUES)
def test_any_recipe_is_runs_or_one_line(
    tmp_path: Path, good: dict[str, Any], changes: dict[str, Any], sets: list[str], value: Any
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**good, **changes}))
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key in sets]
    told = ""
    try:
        if good is SWEEP:
            sweep_plan.expand(sweep_plan.read_recipe(file, overrides), "r.yaml")
        else:
            plan.expand(recipe.read_recipe(file, overrides))
    except InputError as error:
        told = str(error)
    assert "\n" not in told


def test_options_that_came_later_and_say_nothing_leave_older_names_as_they_were() -> None:
    from saelora.jobs import adapt
    from saelora.jobs.spec import compared

    assert not {"transcoders", "transcoder_layers"} & compared(adapt.Config(sae=["a"])).keys()
    assert compared(adapt.Config(transcoders=["a"]))["transcoders"] == ["a"]
