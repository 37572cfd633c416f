"""An option that would do nothing beside what else was chosen is refused by name, and where it acts it is not."""

import typing
from typing import Any

import pytest

from saelora.cli import module_of
from saelora.config import build, coerce, hints_of, to_dict
from saelora.errors import InputError
from saelora.jobs.acting import RULES, Acts, check_acting
from saelora.sae_training.recipe import ARCHITECTURES

CASES = [(command, rule, name) for command, rules in RULES.items() for rule in rules for name in rule.options]
OTHER = {"placement": "all", "init": "gaussian", "steering_hookpoint": "layers.1.resid_post", "expansion": 3, "k": 3}
OTHER |= {"transcoder_layers": "every:2", "launcher": "ray", "launcher_options": ("num_gpus=1",)}
OTHER |= {"steering_latents": (1,), "d_sae": 64, "adapter": "run", "steering_rates": (0.1, 0.2), "tasks": ("mmlu",)}


def kind_of(command: str) -> Any:
    return module_of(command).Config


def other_value(kind: Any, name: str) -> Any:
    """A value within the option's limits that is not its default."""
    default = kind.model_fields[name].default
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, float):
        return default / 2 if default else 0.5
    if isinstance(default, int):
        return default + 1
    choices = typing.get_args(hints_of(kind)[name])
    if isinstance(default, tuple):
        return default[:1]
    return next(
        (c for c in choices if isinstance(c, str) and c != default),
        3 if int in choices else 0.5 if float in choices else "x",
    )


def check(command: str, rule: Acts, chosen: Any, **values: Any) -> None:
    """As the command does it, with ``chosen`` as what the rule looks at; None: it is not given."""
    kind = kind_of(command)
    given = {**values, **({} if chosen is None else {rule.where: chosen})}
    now = {
        key: [*coerce(tuple[str, ...], value, key)] for key, value in given.items() if key in ("parts", "architecture")
    }
    check_acting(build(kind, given), command, {"parts": ["loss"], "architecture": ["topk"], **now})


def choices_of(command: str, rule: Acts) -> tuple[list[Any], list[Any]]:
    """Values of the option that a rule looks at with which its options act, and with which they do not."""
    kind = kind_of(command)
    if rule.values in ("given", "left out"):
        some, none = [other_value(kind, rule.where)], [None]
        return (some, none) if rule.values == "given" else (none, some)
    hint = hints_of(kind)[rule.where]
    inner = next((arm for arm in typing.get_args(hint) if typing.get_args(arm)), hint)
    known = ARCHITECTURES if rule.where == "architecture" else typing.get_args(inner)
    return [v for v in known if v in rule.values], [v for v in known if v not in (*rule.values, "all")]


@pytest.mark.parametrize(("command", "rule", "name"), CASES, ids=[f"{c} {n} {r.where}" for c, r, n in CASES])
def test_option_is_refused_where_it_does_nothing_and_only_there(command: str, rule: Acts, name: str) -> None:
    value = other_value(kind_of(command), name)
    acting, idle = choices_of(command, rule)
    assert acting
    assert idle
    others = [r for r in RULES[command] if name in r.options and r is not rule]
    beside = {r.where: choices_of(command, r)[0][0] for r in others}
    beside = {key: chosen for key, chosen in beside.items() if chosen is not None}
    for chosen in acting:
        check(command, rule, chosen, **beside, **{name: value})
    for chosen in idle:
        with pytest.raises(InputError) as caught:
            check(command, rule, chosen, **beside, **{name: value})
        said = str(caught.value)
        assert said.startswith(f"--{name.replace('_', '-')} does nothing")
        assert f"--{rule.where.replace('_', '-')}" in said
        assert "\n" not in said


@pytest.mark.parametrize("command", RULES)
def test_defaults_may_be_given_whatever_else_is_chosen(command: str) -> None:
    """As the config.yaml of a run does, which can be given again."""
    kind = kind_of(command)
    recorded = {key: value for key, value in to_dict(kind()).items() if value is not None}
    for rule in RULES[command]:
        beside = {} if rule.where == "parts" or "parts" not in recorded else {"parts": ["steering", "saebench"]}
        for chosen in choices_of(command, rule)[1]:
            check(command, rule, chosen, **{k: v for k, v in recorded.items() if k != rule.where} | beside)


def test_architecture_of_a_start_is_not_guessed() -> None:
    config = build(kind_of("train-sae"), {"start": "some-sae", "l1_coefficient": 2.0})
    check_acting(config, "train-sae", {"architecture": []})


def test_option_that_acts_in_one_of_several_variants_is_taken() -> None:
    config = build(kind_of("train-sae"), {"variant": ["architecture=standard", "k=16"], "l1_coefficient": 2.0})
    check_acting(config, "train-sae", {"architecture": ["standard", "topk"]})
