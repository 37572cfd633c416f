"""The method in one file (examples/nano.py) against the package: two programs that share no line agree step by step."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import workspace as ws
from saelora.core.token_mask import TokenPolicy
from saelora.data.corpus import Document, open_corpus
from saelora.data.pack import pack

NANO = Path(__file__).parents[2] / "examples" / "nano.py"
TIGHT = 2e-6  # relative. Both sides are float32 and sum in another order: 2.4e-7 apart at most in these 30 steps
OPTIMISED = {"lr": 5e-3, "clip": 0.1}  # a limit on the gradient's norm that every step meets
CE = ("ce_base", "ce_sae", "ce_adapted", "ce_adapted_clean")


@pytest.fixture(scope="module")
def nano() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nano", NANO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(workspace: ws.Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `saelora adapt` logs and finds, with all but rank, rows, lr and clip at its default."""
    out = tmp_path_factory.mktemp("nano") / "run"
    assert workspace.adapt(out, "--quiet", history_points=0, **OPTIMISED) == 0
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())
    return {"losses": [row["loss"] for row in logged if "loss" in row], **results}


def rows_of(workspace: ws.Workspace, part: Any, n_tokens: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(workspace.model)
    documents = open_corpus(str(workspace.data)).documents()
    return pack(documents, tokenizer, context=ws.CONTEXT, n_tokens=n_tokens, seed=0, validation_fraction=0.2, part=part)


# SPEC 3.7
def test_losses_and_figures_are_those_of_the_package(
    nano: ModuleType, workspace: ws.Workspace, run: dict[str, Any]
) -> None:
    rows = rows_of(workspace, "train", ws.ADAPT["tokens"])
    held_out = rows_of(workspace, "validation", ws.ADAPT["eval_tokens"])
    tokenizer = AutoTokenizer.from_pretrained(workspace.model)
    model, sae = AutoModelForCausalLM.from_pretrained(workspace.model).float(), nano.TopKSAE(workspace.sae)
    exempt = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    splice, model = nano.Splice(model, sae, exempt), nano.add_adapter(model, sae, ws.ADAPT["rank"], seed=0)
    losses = list(nano.train(model, splice, rows.input_ids, batch_rows=ws.ADAPT["batch_rows"], **OPTIMISED))
    found = nano.evaluate(model, splice, held_out.input_ids)
    assert losses == pytest.approx(run["losses"], rel=TIGHT)
    assert found["gap_closed"] > 0.1
    assert [found[name] for name in CE] == pytest.approx([run[name] for name in CE], rel=TIGHT)
    assert found["gap_closed"] == pytest.approx(run["gap_closed"], rel=TIGHT)


def test_rows_are_those_of_the_package(nano: ModuleType, workspace: ws.Workspace) -> None:
    """But for their order, and that of the documents, which the package draws by its seed."""
    tokenizer = AutoTokenizer.from_pretrained(workspace.model)
    first, second = ((workspace.data / name).read_text() for name in ("07.txt", "12.txt"))
    documents = [Document(first, ""), Document(second, "")]
    expected = pack(documents, tokenizer, context=ws.CONTEXT, n_tokens=None, seed=0, part="all").input_ids
    made = [nano.pack(texts, tokenizer, ws.CONTEXT).tolist() for texts in ([first, second], [second, first])]
    assert sorted(expected.tolist()) in [sorted(rows) for rows in made]


def test_the_masks_are_those_of_the_default_policy(nano: ModuleType, workspace: ws.Workspace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(workspace.model)
    exempt = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    splice = nano.Splice(AutoModelForCausalLM.from_pretrained(workspace.model), nano.TopKSAE(workspace.sae), exempt)
    ids = torch.tensor([[exempt[0], 7, exempt[1], 9, exempt[0]], [8, 7, 8, exempt[2], 5]])
    assert torch.equal(splice.token_mask(ids), TokenPolicy().resolve(tokenizer)(ids))


def test_it_is_short_and_needs_no_saelora() -> None:
    text = NANO.read_text()
    assert len(text.splitlines()) <= 150
    assert "import saelora" not in text
    assert "from saelora" not in text


def test_its_command_line_runs(workspace: ws.Workspace, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(path.read_text() for path in sorted(workspace.data.glob("*.txt"))))
    args = [str(workspace.model), str(workspace.sae), str(text), "--tokens", "64", "--context", "32", "--rank", "2"]
    done = subprocess.run(
        [sys.executable, str(NANO), *args], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True
    )
    figures = json.loads(done.stdout[done.stdout.index("{") :])
    assert set(figures) == {*CE, "gap_closed"}
    assert all(math.isfinite(figures[name]) for name in CE)
    assert done.stdout.count("nats per token") == 2
    assert (tmp_path / "nano-adapter" / "adapter_model.safetensors").is_file()
