"""KL between two sets of final hidden states through one frozen unembedding, in chunks of tokens.

No [n_tokens, d_vocab] tensor is ever held, and the unembedding gets no gradient: each chunk forms both models'
logits, adds what is asked for, and keeps only the gradient of the student's hidden states. On GPUs Triton kernels
(``saelora.core.kl_triton``) do what is done here between the matrix products.

Shapes: N tokens, D d_model, V d_vocab, C tokens of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from saelora.core.head import Head
from saelora.core.kl_choice import fused

CHUNK_BYTES = {"cpu": 48 * 2**20, "cuda": 512 * 2**20}  # of one [C, V] tensor; four are held


@dataclass(frozen=True)
class KLHead:
    """What the head returns. ``kl`` carries the gradient; the per-token tensors do not."""

    kl: Float[Tensor, ""]  # sum over tokens of weight * KL(teacher || student), nats
    kl_N: Float[Tensor, " N"]  # KL of each token, unweighted
    ce_teacher_N: Float[Tensor, " N"] | None  # cross entropies, where labels were given
    ce_student_N: Float[Tensor, " N"] | None
    top1_N: Float[Tensor, " N"] | None  # 1.0 where both models' likeliest token is the same, where labels were given


def chunk_size(d_vocab: int, device_type: str = "cpu", itemsize: int = 4) -> int:
    """Tokens per chunk, so that one [C, V] tensor takes about CHUNK_BYTES."""
    return max(16, CHUNK_BYTES.get(device_type, CHUNK_BYTES["cuda"]) // (d_vocab * itemsize))


def kl_heads(
    students_ND: Sequence[Float[Tensor, "N D"]],
    teacher_ND: Float[Tensor, "N D"],
    head: Head,
    weight_N: Real[Tensor, " N"] | None = None,
    labels_N: Int[Tensor, " N"] | None = None,
    chunk: int | None = None,
    student_heads: Sequence[Head] | None = None,
) -> list[KLHead]:
    """KL(teacher || student) over the full vocabulary, and cross entropies on the way, for students of one teacher.

    Args:
        students_ND, teacher_ND: hidden states after the final norm; only the students' get a gradient.
        weight_N: each token's weight in the sum (0 leaves it out); default 1.
        labels_N: next tokens, for the cross entropies.
        chunk: tokens formed at a time; default: what the way that is taken (see ``saelora.core.kl_choice``) is best at.
        student_heads: the students' own unembeddings, where an adapter changes them; default: the teacher's.

    Source: the objective of arXiv 2501.19406, section 3; teacher entropy included, so a perfect student scores 0.
    """
    weight_N = torch.ones(len(teacher_ND), device=teacher_ND.device) if weight_N is None else weight_N
    heads = [head] * len(students_ND) if student_heads is None else list(student_heads)
    flat = _ChunkedKL.apply(teacher_ND.detach(), head, heads, weight_N, labels_N, chunk, *students_ND)  # type: ignore[no-untyped-call]
    groups = [flat[i : i + 5] for i in range(0, len(flat), 5)]
    if labels_N is None:
        return [KLHead(kl, kl_N, None, None, None) for kl, kl_N, *_ in groups]
    return [KLHead(*group) for group in groups]


def kl_head(
    student_ND: Float[Tensor, "N D"],
    teacher_ND: Float[Tensor, "N D"],
    head: Head,
    weight_N: Real[Tensor, " N"] | None = None,
    labels_N: Int[Tensor, " N"] | None = None,
    chunk: int | None = None,
) -> KLHead:
    """``kl_heads`` for one student."""
    return kl_heads([student_ND], teacher_ND, head, weight_N, labels_N, chunk)[0]


@dataclass(frozen=True)
class Passes:
    """What is to be found for students of one teacher, and the tensors that receive it."""

    teacher_ND: Float[Tensor, "N D"]
    head: Head
    students_ND: Sequence[Float[Tensor, "N D"]]
    heads: Sequence[Head]  # the students' own
    weight_N: Real[Tensor, " N"]
    labels_N: Int[Tensor, " N"] | None
    chunk: int | None
    grads_ND: Sequence[Float[Tensor, "N D"] | None]  # filled, where there is one, with the weighted sum's gradient
    kl_SN: Float[Tensor, "S N"]  # these in float32 or float64, zero where nothing was asked for
    ce_teacher_N: Float[Tensor, " N"]
    ce_student_SN: Float[Tensor, "S N"]
    top1_SN: Float[Tensor, "S N"]

    def outputs(self) -> list[Float[Tensor, "..."]]:
        """Of each student in turn what ``KLHead`` holds, in that order."""
        out = []
        for i in range(len(self.students_ND)):
            summed = (self.kl_SN[i] * self.weight_N).sum()
            out += [summed, self.kl_SN[i], self.ce_teacher_N.clone(), self.ce_student_SN[i], self.top1_SN[i]]
        return out


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        teacher_ND: Tensor,
        head: Head,
        heads: Sequence[Head],
        weight_N: Tensor,
        labels_N: Tensor | None,
        chunk: int | None,
        *students_ND: Tensor,
    ) -> tuple[Tensor, ...]:
        """Of each student: weighted sum, KL of each token, both cross entropies, agreement; see ``KLHead``."""
        acc = torch.promote_types(teacher_ND.dtype, torch.float32)
        needs_grad = ctx.needs_input_grad[6:]
        grads_ND = [torch.empty_like(h) if need else None for h, need in zip(students_ND, needs_grad, strict=True)]
        n, device = len(teacher_ND), teacher_ND.device
        ce_t_N = torch.zeros(n, dtype=acc, device=device)
        kl_N, ce_s_N, top1_N = (torch.zeros(len(students_ND), n, dtype=acc, device=device) for _ in range(3))
        passes = Passes(
            teacher_ND, head, students_ND, heads, weight_N, labels_N, chunk, grads_ND, kl_N, ce_t_N, ce_s_N, top1_N
        )
        if fused([teacher_ND, *students_ND], [head, *heads]):
            from saelora.core.kl_triton import fill

            out = fill(passes)
        else:
            out = fill_in_chunks(passes)
        ctx.save_for_backward(*grads_ND)
        ctx.mark_non_differentiable(*(t for k, t in enumerate(out) if k % 5))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            None if grad_ND is None else grad_ND * upstream[5 * i].to(grad_ND.dtype)
            for i, grad_ND in enumerate(ctx.saved_tensors)
        ]
        return (None, None, None, None, None, None, *grads)


def fill_in_chunks(passes: Passes) -> list[Float[Tensor, "..."]]:
    """The plain way: what CPUs run, and what the fused kernels are tested against. Returns the outputs."""
    head, weight_N, acc = passes.head, passes.weight_N, passes.kl_SN.dtype
    n, d_vocab, device = len(passes.teacher_ND), len(head.weight), passes.teacher_ND.device
    chunk = passes.chunk or chunk_size(d_vocab, head.weight.device.type)
    # Every chunk writes into the same four buffers: on a CPU, fresh pages cost more than the arithmetic.
    buffers = [torch.empty(min(chunk, n), d_vocab, dtype=acc, device=device) for _ in range(4)]
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        t_CV, p_CV, s_CV, e_CV = (buffer[: part.stop - start] for buffer in buffers)
        label_C1 = None if passes.labels_N is None else passes.labels_N[part, None]
        head.logits(passes.teacher_ND[part], out=t_CV)
        tz_C1 = _exponentials(t_CV, p_CV)
        if label_C1 is not None:
            top_C = t_CV.argmax(-1)
            passes.ce_teacher_N[part] = (tz_C1.log() - t_CV.gather(1, label_C1))[:, 0]
        for i, (h_ND, grad_ND, own) in enumerate(zip(passes.students_ND, passes.grads_ND, passes.heads, strict=True)):
            own.logits(h_ND[part], out=s_CV)
            # d(cap * tanh(z / cap)) = 1 - (capped / cap)^2, taken before the logits are overwritten
            slope_CV = None if own.softcap is None or grad_ND is None else 1 - (s_CV / own.softcap) ** 2
            sz_C1 = _exponentials(s_CV, e_CV)
            if label_C1 is not None:
                passes.top1_SN[i, part] = (top_C == s_CV.argmax(-1)).to(acc)
                passes.ce_student_SN[i, part] = (sz_C1.log() - s_CV.gather(1, label_C1))[:, 0]
            # summed pairwise: a dot product over the vocabulary, in float32 one term after the other, loses four digits
            apart_C = torch.sub(t_CV, s_CV, out=s_CV).mul_(p_CV).sum(-1)
            passes.kl_SN[i, part] = apart_C / tz_C1[:, 0] + (sz_C1 / tz_C1)[:, 0].log()
            if grad_ND is not None:
                # softmax(student) - softmax(teacher), but for the factor 1 / sz that is put in below
                g_CV = e_CV.addcmul_(p_CV, sz_C1 / tz_C1, value=-1)
                if slope_CV is not None:
                    g_CV *= slope_CV
                g_CD = g_CV.to(own.weight.dtype) @ own.weight
                grad_ND[part] = (g_CD * (weight_N[part, None] * own.scale / sz_C1)).to(grad_ND.dtype)
    return passes.outputs()


def _exponentials(logits_CV: Tensor, exp_CV: Tensor) -> Tensor:
    """Shift each row's logits so that the largest is 0, put their exponentials into exp_CV, return their sums [C, 1].

    Neither is normalised: every pass over [C, V] that is saved shows in a step's time.
    """
    logits_CV -= logits_CV.amax(-1, keepdim=True)
    return torch.exp(logits_CV, out=exp_CV).sum(-1, keepdim=True)


def kl_head_reference(
    student_ND: Float[Tensor, "N D"],
    teacher_ND: Float[Tensor, "N D"],
    head: Head,
    weight_N: Real[Tensor, " N"] | None = None,
    labels_N: Int[Tensor, " N"] | None = None,
) -> KLHead:
    """The same, the plain way: full logits, autograd. What ``kl_head`` is tested and timed against."""
    t_NV, s_NV = head.logits(teacher_ND.detach()).log_softmax(-1), head.logits(student_ND).log_softmax(-1)
    kl_N = (t_NV.exp() * (t_NV - s_NV)).sum(-1)
    ce_t, ce_s = (None if labels_N is None else -x.gather(1, labels_N[:, None])[:, 0] for x in (t_NV, s_NV))
    weighted = kl_N if weight_N is None else kl_N * weight_N
    return KLHead(weighted.sum(), kl_N.detach(), ce_t, ce_s, (t_NV.argmax(-1) == s_NV.argmax(-1)).to(kl_N.dtype))
