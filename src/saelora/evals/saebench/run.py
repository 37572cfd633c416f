"""SAEBench on the original model and on the adapted one: export, run in its own environment, read back."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from saelora.core import lora
from saelora.errors import InputError
from saelora.evals.saebench.environment import last_line
from saelora.evals.saebench.export import export_model, export_sae
from saelora.evals.saebench.local import local_data
from saelora.evals.saebench.metrics import cannot_change, table
from saelora.evals.saebench.result import Figures, Skipped
from saelora.models.hookpoints import Hookpoint
from saelora.records import JsonObject

_MARK = "@saelora"  # begins the runner's lines that report progress


@dataclass(frozen=True)
class Plan:
    """What is run.

    sizes: train, test (texts of a probe's sets, labels together), context (tokens of a text), batch (texts at once),
    core_batches, core_variance_batches, core_batch (rows of a batch).  data: a folder of local data, else None: the
    hub's.  twice: run on the adapted model what cannot differ on it, too.
    """

    evals: Sequence[str]
    sizes: Mapping[str, int]
    data: Path | None
    dtype: str
    device: str
    exclude_special: bool
    twice: bool = False


def run_saebench(
    model: nn.Module,
    saes: Mapping[Hookpoint, Any],
    tokenizer: Any,
    rows: Tensor,
    plan: Plan,
    python: Path,
    work: Path,
    progress: Callable[[int], None] = lambda n: None,
) -> Figures:
    """Run it on the original and on the adapted model.

    Args:
        rows: held-out rows [n_rows, context]; core runs on them where ``plan.data`` is local.
        python: of the environment that has SAEBench.
        work: an empty folder for models (removed at the end), logs and SAEBench's own result files.
        progress: called with 1 as each evaluation of a model and an SAE ends.

    Raises:
        InputError: SAEBench's process failed.
    """
    layers = lora.adapted_layers(model)
    fixed = cannot_change(saes, layers, plan.evals)
    entries = [{"hookpoint": str(h), "folder": str(export_sae(sae, h, work / f"sae-{h}"))} for h, sae in saes.items()]
    data = None
    if plan.data is not None:
        data = {**local_data(plan.data), "core": str(_core_rows(rows, plan.sizes["context"], work / "core.jsonl"))}
    skipped: dict[tuple[str, str], str] = {}
    for name in ("base", "adapted"):
        evals = [e for e in plan.evals if name == "base" or plan.twice or e not in fixed]
        folder = export_model(model, tokenizer, work / f"model-{name}", merged=name == "adapted")
        job = {
            "mark": _MARK,
            "model": str(folder),
            "saes": entries,
            "evals": evals,
            "out": str(work / name),
            "device": plan.device,
            "dtype": plan.dtype,
            "exclude_special": plan.exclude_special,
            "sizes": dict(plan.sizes),
            "data": data,
        }
        for found in _run(python, job, work / f"job-{name}.json", work / f"{name}.log", data is not None, progress):
            skipped.setdefault((found["eval"], found["hookpoint"]), found["why"])
        _remove_weights(folder)
    return Figures(
        metrics=table(work / "base", work / "adapted", saes, plan.evals, layers),
        cannot_change=fixed,
        why=why(saes, layers, fixed),
        skipped=[Skipped(e, h, text) for (e, h), text in skipped.items()],
    )


def why(saes: Mapping[Hookpoint, Any], layers: Sequence[int], fixed: Sequence[str]) -> str:
    """Why some evaluations cannot change, or why all can."""
    where = f"adapters are in layers {layers[0]} to {layers[-1]}" if layers else "the model has no adapter"
    at = ", ".join(map(str, saes))
    if fixed:
        return (
            f"{where}, all of them above {at}: what these evaluations read, the activations there, is the same bit for "
            f"bit with and without the adapter"
        )
    return f"{where}, some of them below {at} or in its layer: the activations that SAEBench reads there change"


def _core_rows(rows: Tensor, context: int, file: Path) -> Path:
    """Held-out rows as SAEBench's core takes them: cut to its context, each beginning as the rows do."""
    cut = rows[:, : min(context, rows.shape[1])].tolist()
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in cut))
    return file


def _run(
    python: Path, job: JsonObject, file: Path, log: Path, offline: bool, progress: Callable[[int], None]
) -> list[dict[str, str]]:
    """One model's job in SAEBench's environment; what it says goes to the log. Returns what was skipped."""
    file.write_text(json.dumps(job, indent=2))
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "JAXTYPING_DISABLE": "1", "WANDB_MODE": "disabled"}
    env.pop("PYTHONPATH", None)
    if offline:
        env |= {"HF_HUB_OFFLINE": "1"}
    command = [str(python), str(Path(__file__).absolute().parent / "runner"), str(file.absolute())]
    with (
        log.open("w", encoding="utf-8") as out,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                out.write(line)
                out.flush()
                if line.startswith(f"{_MARK} done"):
                    progress(1)
        except BaseException:  # stopped by the user: SAEBench must not run on
            process.terminate()
            raise
    code = process.returncode
    if code:
        raise InputError(f"SAEBench stopped with exit code {code} ({last_line(log)}): see {log}")
    skipped: list[dict[str, str]] = json.loads((Path(job["out"]) / "skipped.json").read_text())
    return skipped


def _remove_weights(folder: Path) -> None:
    """The exported model has served: what stays beside the results is small."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
