"""The fused KL head: its kernels under Triton's interpreter, and when they are taken."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saelora.core import kl_choice
from saelora.core.head import Head
from saelora.core.kl_head import kl_head
from saelora.errors import InputError

CASES, COMPILED = (Path(__file__).with_name(f"kl_triton_{name}.py") for name in ("cases", "compiles"))
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: no wheel for this system"
)


def passes(file: Path, folder: Path, **settings: str) -> None:
    """The tests of a file pass in a process of their own: the interpreter is for all of a process, from its start."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    environment = {**kept, "TRITON_CACHE_DIR": str(folder), **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@needs_triton
def test_kernels_are_right_under_the_interpreter(tmp_path: Path) -> None:
    passes(CASES, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compile_for_gpus_of_two_makers(tmp_path: Path) -> None:
    passes(COMPILED, tmp_path)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_are_right_on_the_gpu(tmp_path: Path) -> None:
    passes(CASES, tmp_path)


def found(dtype: torch.dtype = torch.float32) -> float:
    states, weight = torch.ones(3, 4, dtype=dtype), torch.eye(5, 4, dtype=dtype)
    return kl_head(states, 2 * states, Head(weight)).kl.item()


@pytest.mark.parametrize("setting", [None, "auto", "chunked", ""])
def test_a_cpu_runs_the_chunked_code(setting, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if setting is None:
        monkeypatch.delenv(kl_choice.SWITCH, raising=False)
    else:
        monkeypatch.setenv(kl_choice.SWITCH, setting)
    assert not kl_choice.fused([torch.ones(3, 4)], [Head(torch.eye(5, 4))])
    assert found() > 0


def test_asking_for_kernels_where_they_cannot_run_is_refused_in_one_line(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(kl_choice.SWITCH, "fused")
    with pytest.raises(InputError, match=r"^\$SAELORA_KL_HEAD is fused, but the model is on cpu.*chunked$"):
        found()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InputError, match=r"the model is in float64, and the fused head has float32 at most"):
        found(torch.float64)


def test_a_switch_of_no_meaning_is_refused_in_one_line(monkeypatch) -> None:
    monkeypatch.setenv(kl_choice.SWITCH, "fast")
    with pytest.raises(InputError, match=r"^\$SAELORA_KL_HEAD is 'fast', expected auto, fused or chunked$"):
        found()


def test_without_triton_the_reason_is_said(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kl_choice._trial.cache_clear()
    try:
        assert kl_choice._trial(torch.device("cuda", 0)) == "triton is not installed"
    finally:
        kl_choice._trial.cache_clear()
