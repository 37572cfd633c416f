"""Each evaluation has what the registry asks of its folder; the one that CONTRIBUTING adds works as it stands there."""

import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

import families
import saelora.evals
from families import D_MODEL
from saelora.core.splice import splice
from saelora.evals.loss_result import RunResult
from saelora.evals.registry import EVALUATIONS, Evaluation
from saelora.evals.subject import Subject
from saelora.evals.variant import Variant
from saelora.identity import ModelId
from saelora.manifest import Manifest, PartFile
from saelora.models.hookpoints import Hookpoint
from saelora.reporting.page.read import Run
from tiny_saes import SPARE_SPECIAL, TinySAE
from variants import rows_of, with_adapter

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_folder_holds_what_the_registry_asks_of_it(name: str) -> None:
    modules = {room: import_module(f"saelora.evals.{name}.{room}") for room in ("measure", "summary", "section")}
    assert callable(modules["measure"].run)
    assert callable(modules["summary"].lines)
    assert callable(modules["section"].sections)
    result = EVALUATIONS[name].result
    assert is_dataclass(result)
    assert result.__module__ == f"saelora.evals.{name}.result"
    assert result.__dataclass_params__.frozen


def example() -> tuple[str, dict[str, str]]:
    """The registry's line and the files of CONTRIBUTING's evaluation."""
    text = CONTRIBUTING.read_text()
    code = re.search(
        r"\n\n((?:    .*\n|\n)*    # registry.py\n    .*\n)", text[text.index("**Adding an evaluation**") :]
    )
    assert code is not None
    pieces = re.split(r"^# (\S+)\n", dedent(code[1]), flags=re.MULTILINE)
    found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return found.pop("registry.py").strip(), found


def test_the_example_is_short() -> None:
    line, files = example()
    assert "\n" not in line
    assert sum(len(text.strip().splitlines()) + 1 for text in files.values()) < 60


def test_the_example_measures_tells_and_shows(fresh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, files = example()
    (tmp_path / "confidence").mkdir()
    for name, text in {**files, "confidence/__init__.py": ""}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(saelora.evals, "__path__", [*saelora.evals.__path__, str(tmp_path)])
    options = import_module("saelora.evals.confidence.options")
    kind = import_module("saelora.evals.confidence.result").Confidence
    added = eval(line, {"Evaluation": Evaluation, "Confidence": kind, "confidence": options})
    monkeypatch.setitem(EVALUATIONS, "confidence", added)

    rows = rows_of(families.tiny("llama"))
    model = with_adapter(fresh("llama"), [2, 3])
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        nothing: Any = None
        loaded: Any = SimpleNamespace(tokenizer=None)
        unused = dict.fromkeys(("data", "corpus", "training_rows", "console"), nothing)
        subject = Subject(model, spliced, SPARE_SPECIAL, loaded=loaded, saes={}, rows=rows, adapter="run", **unused)
        found = added.run(subject, options.Options())
    result = added.read(found, "confidence.json")
    assert list(result.probability) == [Variant.BASE, Variant.SPLICED, Variant.ADAPTED]
    assert found["n_positions"] == int(SPARE_SPECIAL(rows).sum())
    (told,) = added.lines(result)
    assert f"base {result.probability[Variant.BASE]['value']:.1%}" in told

    file = PartFile(part="confidence", result=found)
    manifest = Manifest(model=ModelId(ref="m"), saes=[], config={})
    results = RunResult(ce_base=1.0, n_tokens_evaluated=1, n_tokens_trained=1)
    run = Run("run", tmp_path, manifest, results, {"confidence": file}, {"confidence": result})
    (section,) = added.sections([run])
    assert section.notes[0].lines == [told]
    assert [row[0] for row in section.tables[0].rows] == ["base", "sae", "adapted"]
