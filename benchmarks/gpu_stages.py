"""The stages of gpu.py: what each measures, and the figures that have a goal."""

import argparse
import copy
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import setting as settings
import sparse_decode
import torch
from measure import peak_bytes, random_sae, ratios, seconds, set_active, summary
from published import ALPHA, DROPOUT, HandWritten, Published, copy_sharing_weights, with_adapter
from setting import Ours, Setting
from torch import Tensor

from saelora.core.head import Head
from saelora.core.kl_choice import SWITCH, fused
from saelora.core.kl_head import kl_head
from saelora.errors import out_of_memory
from saelora.objectives.useful import useful_flops
from saelora.train.step_graph import WARM_UP

RANK, RANKS = 64, (1, 4, 16, 64, 256)
ROUNDS = 7


class Limit(Exception):
    """A stage's time is over."""


@dataclass
class Job:
    """What a stage is given, and where it leaves what it found."""

    device: torch.device
    tiny: bool
    model: str | None
    baseline: Path | None
    data: str | None = None
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    end: float = 0.0

    def begin(self, limit: float) -> None:
        self.end = time.monotonic() + limit

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise Limit

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def rounds(self) -> int:
        return 2 if self.tiny else ROUNDS

    def interleaved(self, arms: Mapping[str, Callable[[], Any]], rounds: int | None = None) -> dict[str, list[float]]:
        """Seconds of each arm, a b c a b c ...; a first round is dropped; the limit is looked at after each arm.

        Of rounds that the limit cut short nothing is kept; where at least one is whole, it is not an error.
        """
        taken: dict[str, list[float]] = {name: [] for name in arms}
        try:
            for round_ in range((rounds or self.rounds) + 1):
                spent = {}
                for name, call in arms.items():
                    spent[name] = seconds(call, self.device)
                    self.check()
                if round_:
                    for name, value in spent.items():
                        taken[name].append(value)
        except Limit:
            if not all(taken.values()):
                raise
            self.note(f"{len(next(iter(taken.values())))} rounds instead of {rounds or self.rounds}: no time for more")
            self.end += 5  # for what is left to be written
        return taken

    def before(self, shape: str, rows: int, context: int) -> list[float] | None:
        """Seconds of the same step by the code of ``--baseline``, in a process of its own."""
        if self.baseline is None:
            return None
        shape = "tiny" if self.tiny else shape
        script = Path(__file__).with_name("gpu_baseline.py")
        words = [self.baseline, shape, rows, context, self.rounds, self.device]
        here = str(Path(__file__).parents[1] / "src")
        elsewhere = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place != here]
        left = max(1.0, self.end - time.monotonic())
        command = [sys.executable, str(script), *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(elsewhere)}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            self.note(f"baseline at {rows}x{context}: not done within {left:.0f} s")
            return None
        if done.returncode:
            self.note(f"baseline at {rows}x{context}: {done.stderr.strip().splitlines()[-1:]}")
            return None
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        return found

    def setting(self, shape: str, n_rows: int, context: int) -> Setting:
        """A frozen model and SAE of a shape, and rows of random tokens; ``--model``'s where that is the shape."""
        parser = argparse.ArgumentParser()
        settings.add_options(parser)
        shape = "tiny" if self.tiny else shape
        flags = ["--device", str(self.device), "--shape", shape]
        return settings.make(parser.parse_args(flags), n_rows, context)


@contextmanager
def head_by(way: str) -> Iterator[None]:
    """The KL head as this switch has it."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = way
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


def ways(device: torch.device) -> tuple[str, ...]:
    """The chunked code runs everywhere."""
    return ("auto", "chunked") if device.type == "cuda" else ("chunked",)


# ---- the KL head


def head(job: Job) -> None:
    """The KL head on 4 x 1024 tokens of Gemma 2 2B's shape and of SmolLM2's, against its three products alone."""
    shapes = {"gemma2_2b": (4096, 2304, 256_000, 30.0), "smollm2": (4096, 576, 49_152, None)}
    if job.tiny:
        shapes = {"gemma2_2b": (64, 16, 300, 30.0), "smollm2": (64, 8, 100, None)}
    for name, (n, d, d_vocab, softcap) in shapes.items():
        job.found[name] = _head(job, n, d, d_vocab, softcap)
        job.free()


def _head(job: Job, n: int, d: int, d_vocab: int, softcap: float | None) -> dict[str, Any]:
    dtype = torch.bfloat16 if job.device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    weight = torch.randn(d_vocab, d, device=job.device, dtype=dtype) / d**0.5
    teacher = 3 * torch.randn(n, d, device=job.device, dtype=dtype)
    student = (teacher + 0.3 * torch.randn_like(teacher)).requires_grad_()
    unembedding = Head(weight, softcap=softcap)

    def ours(way: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with head_by(way):
                return torch.autograd.grad(kl_head(student, teacher, unembedding).kl, student)[0]

        return call

    arms: dict[str, Callable[[], Any]] = {way: ours(way) for way in ways(job.device)}
    arms["three_products"] = _three_products(student.detach(), teacher, weight)
    arms |= _rivals(job, student, teacher, weight, softcap)
    out: dict[str, Any] = {"tokens": n, "d_model": d, "d_vocab": d_vocab, "dtype": str(dtype), "softcap": softcap}
    out |= _agreement(job, student, teacher, unembedding)
    if job.device.type == "cuda" and not fused([teacher, student], [unembedding]):
        job.note("the Triton kernels do not run here (see the warning above): auto is the chunked code")
    peaks = {name: peak_bytes(call, job.device) for name, call in arms.items() if name in ("auto", "chunked")}
    whole = 2 * n * d_vocab * weight.itemsize  # teacher's and student's
    out["peak_of_whole_logits"] = {name: value / whole for name, value in peaks.items()}
    taken = job.interleaved(arms)
    out["seconds"] = {name: summary(values) for name, values in taken.items()}
    best = taken.get("auto", taken["chunked"])
    out["speedup_over_chunked"] = ratios(taken["chunked"], best)
    out["over_three_products"] = ratios(best, taken["three_products"])
    out["speedup_over"] = {name: ratios(taken[name], best) for name in ("trl", "liger") if name in taken}
    return out


def _three_products(student: Tensor, teacher: Tensor, weight: Tensor) -> Callable[[], None]:
    """The least that a head multiplies, in chunks of 1024 tokens and buffers that are there."""
    chunk = min(1024, len(student))
    logits, grad = student.new_empty(chunk, len(weight)), torch.empty_like(student)

    def call() -> None:
        for start in range(0, len(student), chunk):
            part = slice(start, start + chunk)
            here = logits[: len(student[part])]
            torch.mm(teacher[part], weight.T, out=here)
            torch.mm(student[part], weight.T, out=here)
            torch.mm(here, weight, out=grad[part])

    return call


def _agreement(job: Job, student: Tensor, teacher: Tensor, unembedding: Head) -> dict[str, Any]:
    """How far each way is from float64, on the first tokens: KL and the gradient's direction and length."""
    few = slice(0, min(64, len(student)))
    wide = [states[few].detach().double() for states in (student, teacher)]
    wide[0].requires_grad_()
    exact = kl_head(wide[0], wide[1], Head(unembedding.weight.double(), softcap=unembedding.softcap))
    (exact_grad,) = torch.autograd.grad(exact.kl, wide[0])
    out = {}
    for way in ways(job.device):
        with head_by(way):
            got = kl_head(student[few], teacher[few], unembedding)
            (grad,) = torch.autograd.grad(got.kl, student)
        apart = (grad[few].double() - exact_grad).norm() / exact_grad.norm()
        out[way] = {"kl": abs(got.kl.item() / exact.kl.item() - 1), "gradient": apart.item()}
    return {"relative_error_to_float64": out}


def _rivals(
    job: Job, student: Tensor, teacher: Tensor, weight: Tensor, softcap: float | None
) -> dict[str, Callable[[], Any]]:
    """Other libraries' losses from hidden states, where they are installed and apply (Liger's has no softcap)."""
    found: dict[str, Callable[[], Any]] = {}
    if job.device.type != "cuda":
        return found

    def trl() -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        both = (student, weight, None, teacher, weight, None)
        kl_N, _ = ChunkedDivergenceFunction.apply(*both, 0.0, 1.0, 1.0, softcap, 1.0, softcap)
        return torch.autograd.grad(kl_N.sum(), student)[0]

    def liger() -> Tensor:
        from liger_kernel.ops.fused_linear_kl_div import LigerFusedLinearKLDivFunction

        target = (teacher @ weight.T).softmax(-1)  # it takes whole teacher probabilities
        return torch.autograd.grad(LigerFusedLinearKLDivFunction.apply(student, weight, target, None, "sum"), student)[
            0
        ]

    for name, rival in (("trl", trl), ("liger", liger)):
        if name == "liger" and softcap is not None:
            continue
        try:
            rival()
            found[name] = rival
        except Exception as error:
            job.note(f"{name} not timed: {type(error).__name__}: {error}")
    return found


# ---- a step


def step_4x1024(job: Job) -> None:
    """A step of four rows of Gemma 2 2B's shape."""
    _steps(job, "gemma2-2b", [4], 1024)


def step_1x1024(job: Job) -> None:
    _steps(job, "gemma2-2b", [1], 1024)


def small(job: Job) -> None:
    """SmolLM2-135M: 16, 64 and 1 rows of 256."""
    _steps(job, "smollm2-135m", [16, 64, 1], 256, compiled=[16, 64])


def _steps(job: Job, shape: str, all_rows: list[int], context: int, compiled: list[int] | None = None) -> None:
    """Our step as long trainings run it, less and less of what makes it fast, and the hand-written one.

    All on the same weights, SAE and rows.
    """
    context = 16 if job.tiny else context
    setting = job.setting(shape, max(all_rows), context)
    on_gpu = job.device.type == "cuda"
    plain = with_adapter(copy_sharing_weights(setting.model), "after", setting.hookpoint, rank=RANK, alpha=ALPHA)
    common: dict[str, Any] = {"sae": setting.sae, "layer": setting.hookpoint.layer}
    common["kept_ids"] = setting.token_mask.exempt_ids
    for n_rows in all_rows:
        job.check()
        arms: dict[str, Any] = {
            "ours": Ours(setting, "after", [RANK], compiled=on_gpu and n_rows in (compiled or all_rows))
        }
        arms |= {"ours_not_compiled": Ours(setting, "after", [RANK])} if on_gpu else {}
        arms["handwritten"] = HandWritten(plain, **common, autocast=setting.autocast)
        started = time.monotonic()
        _step(arms["ours"], setting.rows[:n_rows])()
        first = time.monotonic() - started
        fitting = {name: _fitting(job, name, arm, setting.rows[:n_rows]) for name, arm in arms.items()}
        out = job.found[f"{n_rows}x{context}" if not job.tiny else f"rows_{n_rows}"] = {}
        out["seconds_first_step"] = first  # with what is built and compiled for it
        _timed_steps(job, setting, arms, fitting, out)
        if before := job.before(shape, n_rows, context):
            out["seconds"]["baseline"] = summary(before)
            out["speedup_over_baseline"] = summary(before)["median"] / out["seconds"]["ours"]["median"]
        out["profile"] = _profile(_step(arms["ours"], fitting["ours"]), job.device)
        out["recorded"] = {name: arm.distill.graph.recorded for name, arm in arms.items() if isinstance(arm, Ours)}
        del arms
        job.free()


def _step(arm: Any, rows: Tensor) -> Callable[[], None]:
    """A call that makes one step of an arm."""
    return lambda: arm.step(rows)


def _fitting(job: Job, name: str, arm: Any, rows: Tensor) -> Tensor:
    """As many of the rows as the arm's step fits in memory, half as many at each try."""
    while True:
        try:
            for _ in range(WARM_UP + 1):  # as often as it takes until a step is recorded
                _step(arm, rows)()
            return rows
        except RuntimeError as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
        for parameter in arm.parameters():
            parameter.grad = None
        job.free()
        job.note(f"{name}: {len(rows)} rows do not fit the memory, {len(rows) // 2} taken, seconds are per row")
        rows = rows[: len(rows) // 2]


def _timed_steps(
    job: Job, setting: Setting, arms: dict[str, Any], rows: dict[str, Tensor], out: dict[str, Any]
) -> None:
    size = 128 if job.tiny else 8192 if job.device.type == "cuda" else 1024
    a = torch.randn(size, size, device=job.device, dtype=setting.autocast or setting.model.dtype)
    b = torch.randn_like(a)
    calls = {name: _step(arm, rows[name]) for name, arm in arms.items()}
    taken = job.interleaved({**calls, "large_product": lambda: torch.mm(a, b)})
    per_row = {name: [s / len(rows[name]) for s in taken[name]] for name in arms}
    n_rows, context = rows["ours"].shape
    needed = n_rows * context * (useful_flops(arms["ours"].distill, context) or math.nan)
    rates = [2 * size**3 / s for s in taken["large_product"]]
    out["rows"] = {name: len(taken_rows) for name, taken_rows in rows.items()}
    out["seconds"] = {name: summary(values) for name, values in taken.items()}
    out["ours_ms"] = 1e3 * summary(taken["ours"])["median"]
    out["tokens_per_second"] = {name: context / summary(values)["median"] for name, values in per_row.items()}
    out["speedup_over"] = {name: ratios(values, per_row["ours"]) for name, values in per_row.items() if name != "ours"}
    out["speedup_over_handwritten"] = out["speedup_over"]["handwritten"]
    out["useful_flops"], out["matrix_rate"] = needed, summary(rates)
    out["share_of_matrix_rate"] = summary([needed / s / rate for s, rate in zip(taken["ours"], rates, strict=True)])


def _profile(call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Launches and waits of one step, and where its time goes, by operation."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = seen.key_averages()
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    top = sorted(events, key=lambda event: -getattr(event, kind))[:30]
    out: dict[str, Any] = {"milliseconds": {event.key: getattr(event, kind) / 1e3 for event in top}}
    if on_gpu:
        out["launches"] = sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
        waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
        out["waits"] = {e.key: e.count for e in events if e.key in waits}
    return out


# ---- several students in one pass


def five_ranks(job: Job) -> None:
    """Five ranks in one pass of Gemma 2 2B's shape, 1 x 1024, against five hand-written runs."""
    context = 16 if job.tiny else 1024
    setting = job.setting("gemma2-2b", 1, context)
    together = Ours(setting, "after", RANKS)
    common: dict[str, Any] = {"sae": setting.sae, "layer": setting.hookpoint.layer, "autocast": setting.autocast}
    common["kept_ids"] = setting.token_mask.exempt_ids
    arms: dict[str, Callable[[], Any]] = {"one_pass": lambda: together.step(setting.rows)}
    for rank in RANKS:
        plain = with_adapter(copy_sharing_weights(setting.model), "after", setting.hookpoint, rank=rank, alpha=ALPHA)
        arms[f"handwritten_{rank}"] = _step(HandWritten(plain, **common), setting.rows)
    taken = job.interleaved(arms, rounds=min(job.rounds, 4))
    loops = [sum(each) for each in zip(*(taken[f"handwritten_{rank}"] for rank in RANKS), strict=True)]
    job.found["seconds"] = {name: summary(values) for name, values in taken.items()}
    job.found["speedup_over_handwritten"] = ratios(loops, taken["one_pass"])


# ---- the SAE


def sae(job: Job) -> None:
    """Dense products against gathering, by kind, precision and width: which way is faster on this device."""
    widths = {16_384: 82, 131_072: 64} if not job.tiny else {128: 4, 256: 4}  # d_sae: active latents
    n, d_in = (4096, 2304) if not job.tiny else (32, 16)
    args = SimpleNamespace(repeats=min(job.rounds, 4), autocast=None)
    points = job.found["points"] = []
    for d_sae, k in widths.items():
        for dtype in (torch.bfloat16, torch.float32):
            for kind in ("topk", "jumprelu"):
                job.check()
                torch.manual_seed(0)
                made = random_sae(kind, d_in, d_sae, k, job.device, dtype)
                set_active(made, k)
                x = torch.randn(1, n, d_in, device=job.device, dtype=dtype)
                where = {"kind": kind, "dtype": str(dtype), "d_sae": d_sae, "k": k, "tokens": n, "d_in": d_in}
                try:
                    points.append({**where, **sparse_decode.timed(made, x, args)})
                except RuntimeError as error:
                    job.note(f"{where}: {type(error).__name__}: {str(error).splitlines()[0]}")
                del made, x
                job.free()


# ---- the command with default options


def defaults(job: Job) -> None:
    """``saelora adapt`` with its default options, on 1M tokens: tokens a second of its training.

    The model's loading and evaluation are left out, what is compiled and recorded is not.
    """
    from saelora.jobs.adapt import adapt

    if job.model is None:
        job.note(
            "not measured: needs the default model's .gguf (--model); stage small has its step, 1x256 as by default"
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text"
        text.mkdir()
        for page in sorted(Path(__file__).parents[1].glob("*.md")) + sorted(
            Path(__file__).parents[1].glob("docs/*.md")
        ):
            (text / f"{page.stem}.txt").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        options: dict[str, Any] = {
            "tokens": 2_048 if job.tiny else 1_000_000,
            "eval_tokens": 512 if job.tiny else 20_000,
        }
        options |= {"history_points": 0, "data": job.data or str(text)}
        options |= {"model": job.model, "sae": [settings.DEFAULT_SAE], "device": str(job.device)}
        found = adapt(**options, out=f"{scratch}/run", quiet=True)
    job.found |= {"tokens": found["n_tokens"], "seconds": found["seconds"]}
    job.found["tokens_per_second"] = found["n_tokens"] / found["seconds"]


# ---- the published step


def published(job: Job) -> None:
    """The published step (float32, eager attention, dropout) on as many of four rows as fit, against ours on these."""
    context = 16 if job.tiny else 1024
    setting = job.setting("gemma2-2b", 4, context)
    wide = copy.deepcopy(setting.model).float()
    model = with_adapter(wide, "after", setting.hookpoint, rank=RANK, alpha=ALPHA, dropout=DROPOUT)
    kept = setting.token_mask.exempt_ids
    arm = Published(model, sae=setting.sae, layer=setting.hookpoint.layer, kept_ids=kept)
    rows = _fitting(job, "published", arm, setting.rows)
    ours = Ours(setting, "after", [RANK])
    calls = {"published": lambda: arm.step(rows), "ours": lambda: ours.step(rows)}
    taken = job.interleaved(calls, rounds=min(job.rounds, 3))
    job.found |= {"rows": len(rows), "seconds": {name: summary(values) for name, values in taken.items()}}
    job.found["speedup"] = ratios(taken["published"], taken["ours"])


STAGES: dict[str, tuple[Callable[[Job], None], float]] = {  # in order of worth, with their minutes
    "head": (head, 1.2),
    "step_4x1024": (step_4x1024, 1.4),
    "step_1x1024": (step_1x1024, 1.2),
    "small": (small, 1.6),
    "five_ranks": (five_ranks, 1.0),
    "sae": (sae, 0.8),
    "defaults": (defaults, 1.0),
    "published": (published, 1.0),
}

# stage, where in what it found, which way, goal, in words
GOALS = [
    ("head", "gemma2_2b/speedup_over_chunked", ">=", 3.2, "KL head, Gemma 2 2B: chunked / fused"),
    ("head", "gemma2_2b/over_three_products", "<=", 1.4, "KL head, Gemma 2 2B: fused / its three products"),
    ("head", "gemma2_2b/peak_of_whole_logits/auto", "<=", 0.1, "KL head, Gemma 2 2B: peak memory / whole logits"),
    ("step_4x1024", "4x1024/ours_ms", "<=", 96, "step, Gemma 2 2B 4x1024, ms"),
    ("step_4x1024", "4x1024/share_of_matrix_rate", ">=", 0.62, "step, Gemma 2 2B 4x1024: share of the matrix rate"),
    ("step_4x1024", "4x1024/speedup_over_handwritten", ">=", 2.5, "step, Gemma 2 2B 4x1024: hand-written / ours"),
    ("step_4x1024", "4x1024/speedup_over_baseline", ">=", 3.0, "step, Gemma 2 2B 4x1024: --baseline / ours"),
    ("step_1x1024", "1x1024/speedup_over_baseline", ">=", 4.0, "step, Gemma 2 2B 1x1024: --baseline / ours"),
    ("small", "16x256/speedup_over_baseline", ">=", 10, "step, SmolLM2 16x256: --baseline / ours"),
    ("small", "16x256/tokens_per_second/ours", ">=", 212_680, "SmolLM2 16x256, tokens/s (10 x 21,268)"),
    ("small", "64x256/tokens_per_second/ours", ">=", 100_880, "SmolLM2 64x256, tokens/s (80 x 1,261, of 1x256)"),
    ("defaults", "tokens_per_second", ">=", 100_880, "SmolLM2, default options, tokens/s (80 x 1,261)"),
    ("five_ranks", "speedup_over_handwritten", ">=", 3.0, "five ranks in one pass: five hand-written / ours"),
]
