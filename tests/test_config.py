"""One declaration of an option for the command line, the file and Python."""

import argparse
import copy
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import ValidationError

from saelora.config import (
    Configuration,
    Count,
    build,
    coerce,
    configured,
    option,
    read_yaml,
    to_dict,
    updated,
)
from saelora.errors import InputError
from saelora.flags import add_options
from saelora.limits import OneOf, Within

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


class Options(Configuration):
    """Some options"""

    name: str | None = option(None, "who", positional=True)
    rank: int = option(4, "LoRA rank")
    tokens: Count = option(15_000, "tokens")
    share: float = option(0.5, "share of 100 %")
    kind: Literal["a", "b"] = option("a", "which")
    sae: list[str] = option([], "SAEs")
    betas: tuple[float, ...] = option((0.9, 0.99), "betas")
    quiet: bool = option(False, "say nothing")
    switch: Literal["auto", "on", "off"] = option("auto", "where it pays")
    long_name: int | None = option(None, "with a dash")


def parse(*words: str) -> Options:
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    return build(Options, vars(parser.parse_args(words)))


def test_a_switch_is_on_where_it_stands_alone_and_yaml_says_true_for_on() -> None:
    assert [parse(*words).switch for words in ([], ["--switch"], ["--switch", "off"])] == ["auto", "on", "off"]
    assert [build(Options, yaml.safe_load(f"switch: {word}")).switch for word in ("on", "off", "true", "auto")] == [
        *("on", "off", "on", "auto")
    ]


@pytest.mark.parametrize(
    ("written", "count"),
    [
        *[("25k", 25_000), ("15M", 15_000_000), ("2B", 2_000_000_000), ("1e6", 10**6), ("1_000", 1000), (7, 7)],
        *[("2.5k", 2500), ("0.5M", 500_000), (1e6, 10**6), (" 3 K ", 3000), ("1,000,000", 10**6)],
    ],
)
def test_counts_may_be_written_short(written: Any, count: int) -> None:
    assert coerce(Count, written, "tokens") == count
    assert type(coerce(Count, written, "tokens")) is int


@pytest.mark.parametrize("written", ["1.5", 1.5, "-3", -3, "many", "", "k", "1.0001k", "nan", "inf", True, None, [1]])
def test_what_is_no_count_is_refused(written: Any) -> None:
    with pytest.raises(InputError, match=r"tokens: got .* expected a count such as 25000, 25k or 15M"):
        coerce(Count, written, "tokens")


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        *[(int, "1.5"), (int, "four"), (int, [1]), (int, True), (int, "inf"), (float, "half"), (float, None)],
        *[(bool, "yes please"), (bool, 1), (str, None), (str, ["a"]), (str, {"a": 1}), (Literal["a", "b"], "c")],
        *[(Literal["a", "b"], ["a"]), (tuple[float, ...], "x"), (list[str], [["a"]]), (int | None, "x")],
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_key(hint: Any, value: Any) -> None:
    with pytest.raises(InputError, match=r"key: got .* expected") as caught:
        coerce(hint, value, "key")
    assert "\n" not in str(caught.value)


def test_values_of_the_right_kind_take_the_declared_type() -> None:
    built = build(Options, {"rank": "8", "share": 1, "sae": "one", "betas": [0, "0.5"], "quiet": "True"})
    assert (built.rank, built.share, built.sae, built.betas, built.quiet) == (8, 1.0, ["one"], (0.0, 0.5), True)
    assert isinstance(built.share, float)
    assert build(Options, {"long_name": None}).long_name is None


@pytest.mark.parametrize(("typo", "meant"), [("rnak", "rank"), ("token", "tokens"), ("long-nam", "long_name")])
def test_unknown_key_names_the_nearest_known_one(typo: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown key '{typo}' in recipe.yaml; did you mean '{meant}'"):
        build(Options, {typo: 1}, "recipe.yaml")


def test_unknown_key_that_is_near_to_none_lists_them_all() -> None:
    with pytest.raises(InputError, match="expected one of betas, kind, long_name, name, quiet, rank"):
        build(Options, {"zzzzzz": 1})


def test_defaults_are_not_shared_between_configurations() -> None:
    build(Options, {}).sae.append("x")
    assert build(Options, {}).sae == []


GIVEN = {"rank": 4, "quiet": False}  # both defaults


@pytest.mark.parametrize(
    "made",
    [lambda: parse("--rank", "4", "--no-quiet"), lambda: build(Options, GIVEN), lambda: Options(**GIVEN)],
    ids=["flags", "keywords", "constructed"],
)
def test_an_option_given_as_its_default_is_given(made: Any) -> None:
    assert made().given == {"rank", "quiet"}
    assert made() == Options()


def test_what_is_given_is_no_option_and_none_gives_nothing() -> None:
    options = build(Options, {"rank": 4, "name": None})
    assert options.given == {"rank"}
    assert Options().given == frozenset()
    assert set(to_dict(options)) == set(vars(options)) == set(Options.model_fields)
    assert copy.copy(options).given == pickle.loads(pickle.dumps(options)).given == {"rank"}


def test_a_copy_with_other_values_is_given_what_was_given_before() -> None:
    other = updated(Options(rank=4), {"tokens": "2k", "share": 0.5})
    assert (other.rank, other.tokens, other.given) == (4, 2000, {"rank"})


def test_a_configuration_is_checked_where_it_is_made_and_cannot_be_changed() -> None:
    with pytest.raises(InputError, match="unknown key 'rnak' in options; did you mean 'rank'"):
        Options(rnak=8)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="tokens: got 'many', expected a count"):
        Options(tokens="many")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="frozen"):
        Options().rank = 8  # type: ignore[misc]


def test_a_job_takes_a_configuration_or_keywords_and_checks_either() -> None:
    assert configured(Options, Options(tokens="2k"), {}) == configured(Options, None, {"tokens": "2k"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank: got 'many'"):
        configured(Options, Options(rank="many"), {})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got a Config and rank beside it"):
        configured(Options, Options(), {"rank": 8})
    with pytest.raises(InputError, match=r"got 'smollm2', expected options by keyword, test_config"):
        configured(Options, "smollm2", {})  # type: ignore[type-var]


def test_flags_take_every_kind() -> None:
    words = "me --rank 8 --tokens 2k --kind b --sae x --sae y --betas 0.1 0.2 --quiet --long-name 3 --share 1e-2"
    assert parse(*words.split()) == Options(
        name="me", rank=8, tokens=2000, kind="b", sae=["x", "y"], betas=(0.1, 0.2), quiet=True, long_name=3,
        share=0.01,
    )  # fmt: skip
    assert parse("--no-quiet").quiet is False
    assert parse() == Options()


def test_a_positional_list_takes_any_number_of_words() -> None:
    class Folders(Configuration):
        dirs: list[str] = option([], "folders", positional=True)
        quiet: bool = option(False, "say nothing")

    for words, dirs in ((["a", "b", "--quiet"], ["a", "b"]), (["--quiet", "a"], ["a"]), (["--quiet"], [])):
        parser = argparse.ArgumentParser()
        add_options(parser, Folders)
        assert build(Folders, vars(parser.parse_args(words))) == Folders(dirs=dirs, quiet=True)


def test_help_states_every_default_and_no_flag_has_one_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    text = " ".join(parser.format_help().split())
    for shown in ("LoRA rank (default: 4)", "share of 100 % (default: 0.5)", "betas (default: 0.9 0.99)"):
        assert shown in text
    assert vars(parser.parse_args([])) == {}


def test_yaml_keys_may_have_dashes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("long-name: 3\ntokens: 25k\n")
    assert read_yaml(tmp_path / "a.yaml") == {"long_name": 3, "tokens": "25k"}
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"- a\n", "holds list"), (b"just text", "holds str"), (b"a: [", "no YAML"), (b"\xff\xfe\xfa", "no YAML")],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "key"),
    [("rank: 4\nrank: 8\n", "rank"), ("long-name: 3\nlong_name: 4\n", "long_name"), ("a: {b: 1, b: 2}\n", "b")],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, content: str, key: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InputError, match=f"{key}'? (is there )?twice.*keep one"):
        read_yaml(tmp_path / "a.yaml")


def test_a_yaml_merge_is_no_repetition(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &base {rank: 4, k: 1}\nown: {<<: *base, rank: 8}\n")
    assert read_yaml(tmp_path / "a.yaml")["own"] == {"rank": 8, "k": 1}


def test_a_folder_as_config_names_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name the YAML file"):
        read_yaml(tmp_path)
    (tmp_path / "config.yaml").write_text("rank: 4\n")
    with pytest.raises(InputError, match=f"is a folder: did you mean {tmp_path / 'config.yaml'}"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("number", [9007199254740993, "9007199254740993", -(2**53) - 1])
def test_whole_numbers_are_kept_to_the_last_digit(number: Any) -> None:
    assert coerce(int, number, "seed") == int(number)


@pytest.mark.parametrize(
    ("hint", "value"),
    [(str, ""), (str, "  "), (str, "a\0b"), (str, "\udcff"), (float, "nan"), (float, float("inf")), (int, 10**30)],
)
def test_what_no_option_can_mean_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(InputError, match=r"key: got .* expected"):
        coerce(hint, value, "key")


def test_a_value_outside_its_limit_is_refused_whichever_way_it_comes() -> None:
    class Limited(Configuration):
        share: float = option(0.5, "a share", limit=Within(least=0, below=1))
        names: list[str] = option(["a"], "names", limit=OneOf(("a", "b")))
        size: int | None = option(None, "a size", limit=Within(least=1))

    assert build(Limited, {"share": 0, "size": None, "names": "b"}).names == ["b"]
    for values, said in (
        ({"share": 1}, r"share is 1.0, expected a number from 0 and below 1"),
        ({"names": ["a", "c"]}, "names is 'c', expected one of a, b"),
        ({"size": 0}, "size is 0, expected 1 or more"),
    ):
        with pytest.raises(InputError, match=said):
            build(Limited, values)
        with pytest.raises(InputError, match=said):
            configured(Limited, Limited(**values), {})


def test_to_dict_survives_yaml(tmp_path: Path) -> None:
    options = Options(name="me", share=1e-5, betas=(0.1, 0.2), sae=["x"])
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(to_dict(options)))
    assert read_yaml(tmp_path / "a.yaml") == to_dict(options)
    assert build(Options, read_yaml(tmp_path / "a.yaml")) == options


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_understood(recipe: Path) -> None:
    from saelora.jobs import adapt, training_options

    config = build(adapt.Config, read_yaml(recipe), recipe.name)
    assert training_options.recipe_of(config).lr == config.lr
