"""The KL head's passes over [tokens, vocabulary] as Triton kernels, between three matrix products a student.

Logits stay in the head's precision in memory, as the product wrote them; bias, scale, softcap and everything that is
summed are float32 in registers. Between the products the kernels read [C, V] four times and write it once:

    product   teacher's logits          ``row_stats``: largest logit, sum of exponentials, and what labels ask for
    product   student's logits          ``row_stats`` again
    ``kl_and_gradient``: KL of each token, and the gradient of its logits in place of the student's logits
    product   that gradient with the unembedding

Shapes: C tokens of a chunk, D d_model, V d_vocab. One program handles one token.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from saelora.core.head import Head
from saelora.core.kl_head import Passes, fill_in_chunks

CHUNK_BYTES = 192 * 2**20  # of one [C, V] tensor; two are held
_MOST_COLUMNS = 4096  # of a row that a program holds in registers at once
_HALF_GAIN = 1024.0  # float16 has no numbers below 6e-8: its gradient is stored this many times larger


@triton.jit
@no_type_check
def _logits(row_ptr, bias_ptr, cols, d_vocab, scale, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """A block of a row's logits in float32, -inf beyond the vocabulary, and the softcap's slope (1 without one)."""
    inside = cols < d_vocab
    z = tl.load(row_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    z = z * scale
    slope = tl.full(z.shape, 1.0, tl.float32)
    if HAS_CAP:  # tanh(x) = sign(x) (1 - e) / (1 + e) and 1 - tanh(x)^2 = 4 e / (1 + e)^2 with e = exp(-2 |x|)
        e = tl.exp(tl.abs(z) * (-2.0 / cap))
        r = 1.0 / (1.0 + e)
        slope = 4.0 * e * r * r
        z = tl.where(z < 0, -cap, cap) * ((1.0 - e) * r)
    return tl.where(inside, z, float("-inf")), slope


@triton.jit
@no_type_check
def row_stats(
    logits_ptr,
    bias_ptr,
    label_ptr,
    peak_ptr,
    total_ptr,
    ce_ptr,
    top_ptr,
    d_vocab,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_LABEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of a row: its largest logit, the sum of exp(logit - largest); with labels cross entropy and likeliest token.

    Each place in a block keeps a maximum and a sum of its own, and they meet once, at the end: no thread waits for
    another at every block. Of the two exponentials of a running sum one is always exp(0).
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * d_vocab
    peak_B = tl.full((BLOCK,), float("-inf"), tl.float32)
    total_B = tl.zeros((BLOCK,), tl.float32)
    top_B = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, d_vocab, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x, _ = _logits(row_ptr, bias_ptr, cols, d_vocab, scale, cap, HAS_BIAS, HAS_CAP)
        if HAS_LABEL:
            top_B = tl.where(x > peak_B, cols, top_B)
        above = tl.where(x == float("-inf"), x, x - peak_B)  # no -inf minus -inf
        e = tl.exp(-tl.abs(above))
        total_B = tl.where(above > 0, total_B * e + 1.0, total_B + e)
        peak_B = tl.maximum(peak_B, x)
    peak = tl.max(peak_B, 0)
    total = tl.sum(tl.where(total_B == 0, 0.0, total_B * tl.exp(peak_B - peak)), 0)
    top = tl.min(tl.where(peak_B == peak, top_B, d_vocab), 0)  # the first of several equal ones
    tl.store(peak_ptr + row, peak)
    tl.store(total_ptr + row, total)
    if HAS_LABEL:
        label = tl.load(label_ptr + row)
        known = (label >= 0) & (label < d_vocab)
        col = tl.where(known, label, 0) + tl.arange(0, 1)
        x, _ = _logits(row_ptr, bias_ptr, col, d_vocab, scale, cap, HAS_BIAS, HAS_CAP)
        ce = tl.log(total) - (tl.sum(x, 0) - peak)
        tl.store(ce_ptr + row, tl.where(known, ce, float("nan")))
        tl.store(top_ptr + row, top)


@triton.jit
@no_type_check
def kl_and_gradient(
    teacher_ptr,
    student_ptr,
    teacher_bias_ptr,
    student_bias_ptr,
    teacher_peak_ptr,
    teacher_total_ptr,
    student_peak_ptr,
    student_total_ptr,
    kl_ptr,
    d_vocab,
    teacher_scale,
    student_scale,
    teacher_cap,
    student_cap,
    gain,
    TEACHER_BIAS: tl.constexpr,
    STUDENT_BIAS: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """KL(teacher || student) of each row; the student's logits become gain * d KL / d (scale * (product + bias))."""
    row = tl.program_id(0)
    teacher_row = teacher_ptr + row.to(tl.int64) * d_vocab
    student_row = student_ptr + row.to(tl.int64) * d_vocab
    teacher_peak = tl.load(teacher_peak_ptr + row)
    teacher_total = tl.load(teacher_total_ptr + row)
    student_peak = tl.load(student_peak_ptr + row)
    student_total = tl.load(student_total_ptr + row)
    ratio = tl.where(student_total == teacher_total, 1.0, student_total / teacher_total)  # GPUs' x / x is not always 1
    student_share = gain / student_total
    apart = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d_vocab, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        t, _ = _logits(
            teacher_row, teacher_bias_ptr, cols, d_vocab, teacher_scale, teacher_cap, TEACHER_BIAS, TEACHER_CAP
        )
        s, slope = _logits(
            student_row, student_bias_ptr, cols, d_vocab, student_scale, student_cap, STUDENT_BIAS, STUDENT_CAP
        )
        t = t - teacher_peak
        s = s - student_peak
        p = tl.exp(t)
        apart += tl.where(p == 0, 0.0, p * (t - s))  # -inf in both is 0, not 0 * (-inf + inf)
        if GRADIENT:
            g = (tl.exp(s) - p * ratio) * student_share * slope  # in this order: nothing at all where both agree
            tl.store(student_row + cols, g.to(student_ptr.dtype.element_ty), mask=cols < d_vocab)
    kl = tl.sum(apart, 0) / teacher_total + tl.log(student_total) - tl.log(teacher_total)
    tl.store(kl_ptr + row, kl)


def chunk_size(d_vocab: int, itemsize: int) -> int:
    """Tokens per chunk: a multiple of 128, which is what matrix products are cut into, where that many fit."""
    tokens = CHUNK_BYTES // (d_vocab * itemsize)
    return max(16, tokens - tokens % 128 if tokens >= 128 else tokens)


def fill(passes: Passes) -> list[Float[Tensor, "..."]]:
    """What ``kl_head`` fills in the plain way, by the kernels. Returns the outputs."""
    n, d_vocab = len(passes.teacher_ND), len(passes.head.weight)
    device, heads = passes.teacher_ND.device, [passes.head, *passes.heads]
    chunk = min(n, passes.chunk or chunk_size(d_vocab, max(head.weight.itemsize for head in heads)))
    dtypes = {head.weight.dtype for head in passes.heads}
    buffers = {dtype: torch.empty(chunk, d_vocab, dtype=dtype, device=device) for dtype in dtypes}
    teacher_CV = torch.empty(chunk, d_vocab, dtype=passes.head.weight.dtype, device=device)
    with _on(device):
        for start in range(0, n, max(1, chunk)):
            part = slice(start, min(start + chunk, n))
            label_C = None if passes.labels_N is None else passes.labels_N[part].contiguous()
            teacher = _Logits.of(passes.head, passes.teacher_ND[part], teacher_CV, label_C)
            if label_C is not None:
                passes.ce_teacher_N[part] = teacher.ce_C
            for i, (hidden_ND, own) in enumerate(zip(passes.students_ND, passes.heads, strict=True)):
                student = _Logits.of(own, hidden_ND[part], buffers[own.weight.dtype], label_C)
                if label_C is not None:
                    passes.ce_student_SN[i, part] = student.ce_C
                    passes.top1_SN[i, part] = (student.top_C == teacher.top_C).float()
                grad_ND = passes.grads_ND[i]
                gain = None if grad_ND is None else _HALF_GAIN if own.weight.dtype == torch.float16 else 1.0
                teacher.kl(student, passes.kl_SN[i, part], gain)
                if grad_ND is not None and gain is not None:
                    grad_CD = student.raw_CV @ own.weight
                    grad_ND[part] = (grad_CD * (passes.weight_N[part, None] * own.scale / gain)).to(grad_ND.dtype)
    return passes.outputs()


def trial(device: torch.device) -> None:
    """Run all kernels once on a few numbers.

    Raises:
        ArithmeticError: what they find is not what the chunked code finds.
        Exception: whatever Triton raises where it cannot build or launch them.
    """
    n, d, d_vocab = 3, 4, 37
    wave = torch.linspace(0, 50, d_vocab * (d + 1), device=device).sin()
    head = Head(wave[: d_vocab * d].view(d_vocab, d), wave[d_vocab * d :], softcap=2.0)
    teacher_ND, student_ND, label_N = 2 * head.weight[:n], 3 * head.weight[n : 2 * n], torch.arange(n, device=device)
    found = []
    for way in (fill, fill_in_chunks):
        out = [torch.zeros(1, n, device=device) for _ in range(3)]
        grad_ND, ce_N, weight_N = (
            torch.zeros_like(student_ND),
            torch.zeros(n, device=device),
            torch.ones(n, device=device),
        )
        with torch.autocast(device.type, enabled=False):
            way(
                Passes(
                    teacher_ND, head, [student_ND], [head], weight_N, label_N, None, [grad_ND], out[0], ce_N, *out[1:]
                )
            )
        found.append(torch.cat([tensor.flatten() for tensor in (grad_ND, ce_N, *out)]))
    apart = (found[0] - found[1]).abs().max().item()
    if not apart < 2e-2:  # products of float32 may be in TF32
        raise ArithmeticError(f"they are {apart:.3g} away from the chunked code")


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whichever its tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass
class _Logits:
    """A model's logits of one chunk, as its head's product wrote them, and what ``row_stats`` found."""

    head: Head
    raw_CV: Tensor
    label_C: Tensor | None
    peak_C: Tensor
    total_C: Tensor
    ce_C: Tensor
    top_C: Tensor

    @classmethod
    def of(cls, head: Head, hidden_CD: Tensor, buffer_CV: Tensor, label_C: Tensor | None) -> "_Logits":
        raw_CV = buffer_CV[: len(hidden_CD)]
        torch.mm(hidden_CD.to(head.weight.dtype), head.weight.T, out=raw_CV)
        peak_C, total_C, ce_C = torch.empty(3, len(raw_CV), dtype=torch.float32, device=raw_CV.device).unbind()
        top_C = torch.empty(len(raw_CV), dtype=torch.int32, device=raw_CV.device)
        found = cls(head, raw_CV, label_C, peak_C, total_C, ce_C, top_C)
        found._measure()
        return found

    @property
    def bias(self) -> Tensor:
        return self.raw_CV if self.head.bias is None else self.head.bias  # where there is none, it is not read

    @property
    def cap(self) -> float:
        return self.head.softcap or 1.0

    def _measure(self) -> None:
        rows, d_vocab = self.raw_CV.shape
        row_stats[(rows,)](
            self.raw_CV,
            self.bias,
            self.top_C if self.label_C is None else self.label_C,
            self.peak_C,
            self.total_C,
            self.ce_C,
            self.top_C,
            d_vocab,
            self.head.scale,
            self.cap,
            HAS_BIAS=self.head.bias is not None,
            HAS_CAP=self.head.softcap is not None,
            HAS_LABEL=self.label_C is not None,
            **_tiling(d_vocab),
        )

    def kl(self, student: "_Logits", kl_C: Tensor, gain: float | None) -> None:
        """Fill kl_C; with a ``gain``, also put gain times the gradient over the student's logits."""
        rows, d_vocab = self.raw_CV.shape
        kl_and_gradient[(rows,)](
            self.raw_CV,
            student.raw_CV,
            self.bias,
            student.bias,
            self.peak_C,
            self.total_C,
            student.peak_C,
            student.total_C,
            kl_C,
            d_vocab,
            self.head.scale,
            student.head.scale,
            self.cap,
            student.cap,
            gain or 1.0,
            TEACHER_BIAS=self.head.bias is not None,
            STUDENT_BIAS=student.head.bias is not None,
            TEACHER_CAP=self.head.softcap is not None,
            STUDENT_CAP=student.head.softcap is not None,
            GRADIENT=gain is not None,
            **_tiling(d_vocab),
        )


def _tiling(d_vocab: int) -> dict[str, Any]:
    block = min(_MOST_COLUMNS, triton.next_power_of_2(d_vocab))
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}
