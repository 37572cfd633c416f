"""llama.cpp, where the package xllamacpp brings one: an adapter's file run on the model it is for.

    python -m saelora.use.exports.llama_cpp JOB.json

It runs in a process of its own, which it ends by itself where it does not like what it is given.
JOB: {"base": file, "adapter": file, "scales": [float], "prompts": [[token id]], "n_vocab": int, "out": file.npy}
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from saelora.errors import InputError, on_one_line
from saelora.manifest import version_of

PACKAGE = "xllamacpp"


def log_probabilities(base: Path, adapter: Path, prompts: list[list[int]], n_vocab: int, work: Path) -> np.ndarray:
    """Log-probabilities [2, n_prompts, n_vocab] of what follows each prompt, float64: without the adapter and with it.

    Args:
        base, adapter: GGUF files.
        work: a folder for what the two processes tell each other.

    Raises:
        InputError: llama.cpp does not run them.
    """
    job, out = work / "job.json", work / "found.npy"
    asked = {"base": str(base), "adapter": str(adapter), "scales": [0.0, 1.0], "prompts": prompts}
    job.write_text(json.dumps({**asked, "n_vocab": n_vocab, "out": str(out)}))
    command = [sys.executable, "-m", "saelora.use.exports.llama_cpp", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise InputError(
            f"llama.cpp ({PACKAGE} {version_of(PACKAGE)}) does not run this adapter: {on_one_line(said[-1], 200)}; "
            "export --to merged instead"
        )
    found: np.ndarray = np.load(out)
    return found


def _main(path: str) -> None:
    import xllamacpp

    job = json.loads(Path(path).read_text())
    server = _server(xllamacpp, job)
    found = np.array(
        [[_after(server, prompt, scale, job["n_vocab"]) for prompt in job["prompts"]] for scale in job["scales"]]
    )
    np.save(job["out"], found)


def _server(xllamacpp: Any, job: dict[str, Any]) -> Any:
    """On the CPU, all in float32."""
    params, float32 = xllamacpp.CommonParams(), xllamacpp.ggml_type.GGML_TYPE_F32
    params.model.path = job["base"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(job["adapter"], 1.0)]
    params.n_gpu_layers, params.n_parallel, params.warmup, params.fit_params = 0, 1, False, False
    params.n_ctx = max(len(prompt) for prompt in job["prompts"]) + 1
    params.cache_type_k = params.cache_type_v = float32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_prompt, params.verbosity = False, 1  # errors alone
    return xllamacpp.Server(params)


def _after(server: Any, prompt: list[int], scale: float, n_vocab: int) -> np.ndarray:
    asked = {"prompt": prompt, "max_tokens": 1, "logprobs": n_vocab, "lora": [{"id": 0, "scale": scale}]}
    answer = server.handle_completions(asked)
    found = np.full(n_vocab, np.nan)
    for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[each["id"]] = each["logprob"]
    return found


if __name__ == "__main__":
    _main(sys.argv[1])
