"""The command line's surface, and that importing the package is cheap."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import saelora
from saelora.cli import JOBS, main, module_of
from saelora.errors import InputError


@pytest.mark.parametrize("command", JOBS)
def test_help_explains_every_option_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    recipes = ("sweep", "compare", "report", "push", "figure")  # where a file names the device, or none is needed
    own = () if command in recipes else ("--device", "(default: auto)")
    for shown in ("--config FILE", "--json", "(default: ", "--quiet", *own):
        assert shown in text


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in JOBS)


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"saelora {version('saelora')}\n"


@pytest.mark.parametrize("words", [[], ["adpt"], ["adapt", "--nose"], ["adapt", "a", "b"], ["adapt", "--rank"]])
def test_what_does_not_parse_is_one_line_and_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("saelora: ")
    assert printed.err.count("\n") == 1
    assert "--help" in printed.err


def test_flag_typo_names_the_nearest_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", "--rnak", "4"]) == 2
    assert "did you mean --rank" in capsys.readouterr().err


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: ./from-the-file\nsae: [x]\ndata: y\nout: {tmp_path}/run\n")
    assert main(["adapt", "--config", str(recipe), "--quiet"]) == 2
    assert "model ./from-the-file does not exist" in capsys.readouterr().err
    assert main(["adapt", "./from-the-flag", "--config", str(recipe), "--quiet"]) == 2
    assert "model ./from-the-flag does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adapt", "evaluate", "train_sae", "demo", "report"])
def test_python_calls_refuse_unknown_options(name: str) -> None:
    with pytest.raises(InputError, match="unknown key 'typo'"):
        getattr(saelora, name)(typo=1)


@pytest.mark.parametrize("command", JOBS)
def test_out_of_memory_is_answered_with_options_that_the_command_has(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = command.replace("-", "_")
    module = module_of(command)

    def fail(config: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, name, fail)
    assert main([command]) == 2
    said = capsys.readouterr().err
    named = {word.removeprefix("--").replace("-", "_") for word in re.findall(r"--[a-z-]+", said)}
    assert named <= module.Config.model_fields.keys()
    assert said.startswith("saelora: memory ran out (MemoryError): ")
    assert "free some" in said


def test_every_public_name_is_there() -> None:
    assert all(getattr(saelora, name) is not None for name in saelora.__all__)
    with pytest.raises(AttributeError, match="nose"):
        _ = saelora.nose


def test_the_package_lists_what_is_there_and_knows_its_version() -> None:
    from importlib.metadata import version

    assert saelora.__version__ == version("saelora")
    assert {*saelora.__all__, "__version__"} <= set(dir(saelora))
    assert set(saelora._HOMES) | {"InputError"} == {*saelora.__all__, "write_report"}  # report's former name, unlisted
    assert {"load_adapter", "load_model", "load_sae"} <= {*saelora.__all__}


def test_importing_the_package_and_its_command_line_is_cheap() -> None:
    code = "import sys, saelora, saelora.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "saelora.cli" in loaded
    assert not loaded & {"torch", "transformers", "sae_lens", "peft", "datasets", "matplotlib"}


def test_a_report_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, saelora.jobs.report, saelora.reporting.page; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "sae_lens", "peft", "datasets"}


def test_reading_end_closed_early_is_no_traceback() -> None:
    """As in ``saelora adapt --help | head -1``."""
    done = subprocess.run(
        f"{sys.executable} -m saelora.cli --help | head -c 1", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
