"""Whatever value an option of any command cannot take ends in exit code 2 and one line, before anything is loaded."""

import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import pytest
import yaml

import saelora.assemble  # noqa: F401  # before its imports are put aside below, or they stay so
from saelora.cli import JOBS, main, module_of
from saelora.config import Count, hints_of, limits_of
from saelora.options import check_together

WORDS = {
    Count: ["-1", "1.5", "many", "nan", "inf", "", "1e30", "0x10"],
    int: ["1.5", "four", "nan", "inf", "", "1e400", "9" * 40],
    float: ["half", "nan", "inf", "-inf", "", "1e400"],
    str: ["", " "],
}
NUMBERS = ["-1", "0", "1", "2", "1000", "1000000000"]
TEXTS = ["nonsense", "layers.1.nose", "layers:9-2", "cuda:x", "meta"]
HUB = {"model": "someone/model", "sae": "someone/sae", "data": "someone/data", "hookpoint": "layers.1.resid_post"}


def kind_of(command: str) -> Any:
    return module_of(command).Config


def plain(hint: Any) -> Any:
    """What one value of an option is: without None, and without the list around it."""
    arms = (
        [arm for arm in typing.get_args(hint) if arm is not NoneType] if NoneType in typing.get_args(hint) else [hint]
    )
    arm = arms[0]
    return typing.get_args(arm)[0] if typing.get_origin(arm) in (list, tuple) else arm


def bad_values(command: str) -> Iterator[tuple[str, str]]:
    kind = kind_of(command)
    limits = limits_of(kind)
    for name, hint in hints_of(kind).items():
        value, limit = plain(hint), limits.get(name)
        if typing.get_origin(value) is Literal:
            yield name, "nonsense"
            continue
        yield from ((name, word) for word in WORDS.get(value, []))
        if limit is not None and value is not str:
            make = float if value is float else int
            tried = [number for number in NUMBERS if not (value == Count and number == "-1")]
            yield from ((name, number) for number in tried if limit(make(number)))
        if limit is not None and value is str:
            yield from ((name, text) for text in TEXTS if refuses(limit, text))


def refuses(limit: Any, text: str) -> bool:
    from saelora.errors import InputError

    try:
        return bool(limit(text))
    except InputError:
        return True


CASES = [(command, *case) for command in JOBS for case in bad_values(command)]


def words_for(command: str, name: str, value: str, out: Path) -> list[str]:
    """A command that would be right but for one value."""
    kind = kind_of(command)
    given = {key: text for key, text in HUB.items() if key in hints_of(kind)}
    if command in ("sweep", "compare"):
        given["recipe"] = str(out.with_suffix(".yaml"))
    if command != "report" and "out" in hints_of(kind):
        given["out"] = str(out)
    if command == "report":
        given["dirs"] = str(out)
    given |= {
        key: text
        for key, text in {"ref": "someone/run", "prompt": "text", "to": "peft"}.items()
        if key in hints_of(kind)
    }
    given[name] = value
    positional = [name for name, field in kind.model_fields.items() if field.json_schema_extra["positional"]]
    flags = [f"--{key.replace('_', '-')}={text}" for key, text in given.items() if key not in positional]
    words = [given[key] for key in positional if key in given]
    return [command, *flags, *(["--", *words] if words else [])]


@pytest.fixture(autouse=True)
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("something was loaded")

    for place in ("saelora.models.loading.load_model", "saelora.assemble.load_model", "saelora.saes.loading.load_sae"):
        monkeypatch.setattr(place, load)
    monkeypatch.setattr("saelora.assemble.load_sae", load)
    monkeypatch.setattr("saelora.assemble.open_corpus", load)


@pytest.mark.parametrize(("command", "name", "value"), CASES, ids=[f"{c}-{n}-{v[:12]!r}" for c, n, v in CASES])
def test_a_bad_value_is_one_line_and_code_2(
    command: str, name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recipe = {"base": {**HUB, "sae": [HUB["sae"]], "tokens": 10_000}, "grid": {"rank": [4]}}
    del recipe["base"]["hookpoint"]
    out.with_suffix(".yaml").write_text(yaml.safe_dump(recipe))
    assert main(words_for(command, name, value, out)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("saelora: ")
    assert printed.err.count("\n") == 1, printed.err
    assert name in printed.err.replace("-", "_"), printed.err
    assert not out.exists()


def test_there_are_cases_for_every_command_and_every_number_has_a_limit() -> None:
    assert {command for command, *_ in CASES} == set(JOBS)
    for command in JOBS:
        hints, limits = hints_of(kind_of(command)), limits_of(kind_of(command))
        assert [n for n, hint in hints.items() if plain(hint) in (int, float, Count) and n not in limits] == []


@pytest.mark.parametrize("command", JOBS)
def test_every_default_is_within_its_limit(command: str) -> None:
    from saelora.config import build, to_dict

    kind = kind_of(command)
    assert build(kind, to_dict(kind())) == kind()


BASE = {"model": "someone/model", "sae": ["someone/sae"], "data": "someone/data", "context": 128}


@pytest.mark.parametrize(
    ("command", "changed", "said"),
    [
        ("adapt", {"tokens": 10}, "tokens is 10, but one row has 128 tokens (--context)"),
        ("adapt", {"tokens": 120}, "give 128 or more"),
        ("adapt", {"eval_tokens": 64}, "eval_tokens is 64, but one row has 128"),
        ("adapt", {"eval_tokens": 200, "eval_context": 256}, "one row has 256 tokens (--eval-context)"),
        ("adapt", {"history_tokens": 100}, "history_tokens is 100"),
        ("adapt", {"exempt": ["none", "bos"]}, "none spares no position, give it alone"),
        ("adapt", {"resume": True, "overwrite": True}, "give one of them"),
        ("adapt", {"betas": [0.9]}, "betas"),
        ("adapt", {"sae": []}, "no SAE given"),
        ("finetune-sae", {"tokens": 10}, "tokens is 10"),
        ("train-sae", {"tokens": 10}, "tokens is 10"),
        ("train-sae", {"hookpoint": []}, "no hookpoint given"),
        ("train-sae", {"start": "./nowhere"}, "SAE ./nowhere does not exist"),
        ("train-sae", {"k": 64, "d_sae": 32}, "k is 64 but d_sae is 32"),
        ("evaluate", {"eval_tokens": 10}, "eval_tokens is 10"),
        ("evaluate", {"frequency_tokens": 10}, "frequency_tokens is 10"),
        ("evaluate", {"ablation_tokens": 200}, "two rows have 256 tokens"),
        ("evaluate", {"ablation_tokens": "990", "context": 512}, "two rows have 1,024 tokens"),
        ("evaluate", {"replacement_tokens": 100}, "replacement_tokens is 100, but one row has 128"),
        ("evaluate", {"parts": []}, "parts is empty"),
        ("evaluate", {"sae": []}, "no SAE given"),
    ],
)
def test_values_that_do_not_fit_one_another_are_refused_before_anything_is_loaded(
    command: str, changed: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**BASE, **changed}
    if command == "train-sae":
        given = {"hookpoint": ["layers.1.resid_post"], **{k: v for k, v in given.items() if k != "sae"}}
    if command != "evaluate":
        given["out"] = str(tmp_path / "out")
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    assert main([command, "--config", str(tmp_path / "given.yaml")]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_default_that_is_less_than_one_long_row_stands_for_one_row() -> None:
    from saelora.config import build
    from saelora.jobs import adapt
    from saelora.options import check_together

    check_together(build(adapt.Config, {"context": 8192}))
    check_together(build(adapt.Config, {"context": 8192, "history_tokens": 4096}))  # as a run's config.yaml has it


@pytest.mark.parametrize(
    ("name", "context"),
    [(name, 1024) for name in ("tokens", "eval_tokens", "history_tokens", "frequency_tokens", "replacement_tokens")]
    + [("ablation_tokens", 512)],
)
def test_1k_stands_for_1024_where_rows_want_these(name: str, context: int) -> None:
    command = "adapt" if name in ("tokens", "history_tokens") else "evaluate"
    check_together(kind_of(command)(**{**BASE, "context": context, name: "1k"}))
