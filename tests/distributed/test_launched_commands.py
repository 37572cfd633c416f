"""``torchrun -m saelora``: a signal to the launcher, and input that all processes or one of them cannot use."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import workspace as ws
from launch import finished, launched
from saelora.train.checkpoint import load_checkpoint

pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.timeout(600)]

N_STEPS = 60
RUN: dict[str, Any] = {"tokens": 2 * N_STEPS * ws.CONTEXT, "lr": 1e-3, "history_tokens": ws.CONTEXT}


def words(workspace: ws.Workspace, out: Path, **options: Any) -> list[str]:
    given = {"sae": workspace.sae, "data": workspace.data, "out": out, **ws.ADAPT, **RUN, **options}
    return ["adapt", str(workspace.model), *ws.as_flags(given), "--quiet"]


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("saelora: ")]


def test_signal_to_the_launcher_saves_and_one_process_goes_on(workspace: ws.Workspace, tmp_path: Path) -> None:
    out, reference = tmp_path / "run", tmp_path / "reference"
    metrics = out / "metrics.jsonl"
    with launched("-m", "saelora", *words(workspace, out)) as launcher:
        while not metrics.exists() or metrics.read_text().count("grad_norm") < 3:
            assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()[-3000:]
            time.sleep(0.005)
        launcher.send_signal(signal.SIGTERM)
        said = launcher.communicate(timeout=300)[1]
    assert launcher.returncode != 0
    (stopped,) = complaints(said)
    assert f"saelora adapt --config {out}/config.yaml --out {out} --resume" in stopped
    found = load_checkpoint(out / "checkpoints")
    assert found is not None
    assert 3 <= found[1]["step"] < N_STEPS
    assert not (out / "results.json").exists()

    assert workspace.adapt(out, "--resume", "--quiet", **RUN) == 0
    assert workspace.adapt(reference, "--quiet", **RUN) == 0
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, reference))
    assert all((ours[name] - theirs[name]).norm() <= 1e-4 * theirs[name].norm() for name in theirs)
    logged = [[json.loads(line)["step"] for line in (f / "metrics.jsonl").open()] for f in (out, reference)]
    assert logged[0] == logged[1]


@pytest.mark.parametrize("batch_rows", [1, None], ids=["given", "left to the default"])
def test_input_that_no_process_can_use_ends_in_one_line_and_code_2(
    workspace: ws.Workspace, tmp_path: Path, batch_rows: int | None
) -> None:
    code, printed, said = finished("-m", "saelora", *words(workspace, tmp_path / "run", batch_rows=batch_rows))
    assert code != 0
    assert printed == ""
    (complaint,) = complaints(said)
    assert "batch_rows is 1 for 2 processes" in complaint
    assert "exitcode  : 2 " in said  # torchrun's own summary
    assert "saelora/cli.py" not in said  # no traceback of ours
    assert not (tmp_path / "run").exists()


def test_input_that_one_process_cannot_use_ends_them_all_at_once(workspace: ws.Workspace, tmp_path: Path) -> None:
    script = Path(__file__).with_name("one_fails.py")
    code, printed, said = finished(str(script), *words(workspace, tmp_path / "run"))
    assert code != 0
    assert printed == ""
    (complaint,) = complaints(said)
    assert "./missing" in complaint
    assert "exitcode  : 2 " in said
    assert "saelora/cli.py" not in said
