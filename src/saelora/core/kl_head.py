"""KL between two sets of final hidden states through one frozen unembedding, in chunks of tokens.

No [n_tokens, d_vocab] tensor is ever held, and the unembedding gets no gradient: each chunk forms both models'
logits, adds what is asked for, and keeps only the gradient of the student's hidden states.

Shapes: N tokens, D d_model, V d_vocab, C tokens of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saelora.models.anatomy import Head

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class KLHead:
    """What the head returns. ``kl`` carries the gradient; the per-token tensors do not."""

    kl: Tensor  # scalar: sum over tokens of weight * KL(teacher || student), nats
    kl_N: Tensor  # KL of each token, unweighted
    ce_teacher_N: Tensor | None  # cross entropies, where labels were given
    ce_student_N: Tensor | None
    top1_N: Tensor  # 1.0 where both models' likeliest token is the same


def chunk_size(d_vocab: int, itemsize: int = 4) -> int:
    """Tokens per chunk, so that one [C, V] tensor takes about CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (d_vocab * itemsize))


def kl_heads(
    students_ND: Sequence[Tensor],
    teacher_ND: Tensor,
    head: Head,
    weight_N: Tensor | None = None,
    labels_N: Tensor | None = None,
    chunk: int | None = None,
) -> list[KLHead]:
    """KL(teacher || student) over the full vocabulary, and cross entropies on the way, for students of one teacher.

    Args:
        students_ND, teacher_ND: hidden states after the final norm; only the students' get a gradient.
        weight_N: each token's weight in the sum (0 leaves it out); default 1.
        labels_N: next tokens, for the cross entropies.
        chunk: tokens formed at a time.

    Source: the objective of arXiv 2501.19406, section 3; teacher entropy included, so a perfect student scores 0.
    """
    weight_N = torch.ones(len(teacher_ND), device=teacher_ND.device) if weight_N is None else weight_N
    chunk = chunk or chunk_size(head.weight.shape[0])
    flat = _ChunkedKL.apply(teacher_ND.detach(), head, weight_N, labels_N, chunk, *students_ND)
    groups = [flat[i : i + 5] for i in range(0, len(flat), 5)]
    if labels_N is None:
        return [KLHead(kl, kl_N, None, None, top1_N) for kl, kl_N, _, _, top1_N in groups]
    return [KLHead(*group) for group in groups]


def kl_head(
    student_ND: Tensor,
    teacher_ND: Tensor,
    head: Head,
    weight_N: Tensor | None = None,
    labels_N: Tensor | None = None,
    chunk: int | None = None,
) -> KLHead:
    """``kl_heads`` for one student."""
    return kl_heads([student_ND], teacher_ND, head, weight_N, labels_N, chunk)[0]


def _student_chunk(
    t_CV: Tensor, p_CV: Tensor, s_CV: Tensor, head: Head, label_C1: Tensor | None, needs_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One student's chunk, in place in s_CV: KL [C], cross entropy [C], and the gradient of KL by h [C, D]."""
    # d(cap * tanh(z / cap)) = 1 - (capped / cap)^2, taken before the logits are overwritten.
    slope_CV = None if head.softcap is None or not needs_grad else 1 - (s_CV / head.softcap) ** 2
    s_CV -= s_CV.logsumexp(-1, keepdim=True)
    ce_C = None if label_C1 is None else -s_CV.gather(1, label_C1)[:, 0]
    kl_C = torch.linalg.vecdot(p_CV, t_CV - s_CV)
    if not needs_grad:
        return kl_C, ce_C, None
    g_CV = s_CV.exp_().sub_(p_CV)
    if slope_CV is not None:
        g_CV *= slope_CV
    return kl_C, ce_C, (g_CV.to(head.weight.dtype) @ head.weight) * head.scale


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, teacher_ND, head, weight_N, labels_N, chunk, *students_ND):
        acc = torch.promote_types(teacher_ND.dtype, torch.float32)
        needs_grad = ctx.needs_input_grad[5:]
        grads_ND = [torch.empty_like(h) if need else None for h, need in zip(students_ND, needs_grad, strict=True)]
        n = len(teacher_ND)
        ce_t_N = torch.zeros(n, dtype=acc, device=teacher_ND.device)
        kl_N, ce_s_N, top1_N = (torch.zeros(len(students_ND), n, dtype=acc, device=ce_t_N.device) for _ in range(3))
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            t_CV = head.logits(teacher_ND[part])
            t_CV -= t_CV.logsumexp(-1, keepdim=True)
            p_CV, top_C = t_CV.exp(), t_CV.argmax(-1)
            label_C1 = None if labels_N is None else labels_N[part, None]
            if label_C1 is not None:
                ce_t_N[part] = -t_CV.gather(1, label_C1)[:, 0]
            for i, (h_ND, grad_ND) in enumerate(zip(students_ND, grads_ND, strict=True)):
                s_CV = head.logits(h_ND[part])
                top1_N[i, part] = (top_C == s_CV.argmax(-1)).to(acc)
                kl_N[i, part], ce_C, g_CD = _student_chunk(t_CV, p_CV, s_CV, head, label_C1, grad_ND is not None)
                if ce_C is not None:
                    ce_s_N[i, part] = ce_C
                if grad_ND is not None and g_CD is not None:
                    grad_ND[part] = (g_CD * weight_N[part, None]).to(grad_ND.dtype)
        ctx.save_for_backward(*grads_ND)
        out = []
        for i in range(len(students_ND)):
            out += [(kl_N[i] * weight_N).sum(), kl_N[i], ce_t_N.clone(), ce_s_N[i], top1_N[i]]
        ctx.mark_non_differentiable(*(t for k, t in enumerate(out) if k % 5))
        return tuple(out)

    @staticmethod
    def backward(ctx, *upstream):
        grads = [
            None if grad_ND is None else grad_ND * upstream[5 * i].to(grad_ND.dtype)
            for i, grad_ND in enumerate(ctx.saved_tensors)
        ]
        return (None, None, None, None, None, *grads)


def kl_head_reference(
    student_ND: Tensor, teacher_ND: Tensor, head: Head, weight_N: Tensor | None = None, labels_N: Tensor | None = None
) -> KLHead:
    """The same, the plain way: full logits, autograd. What ``kl_head`` is tested and timed against."""
    t_NV, s_NV = head.logits(teacher_ND.detach()).log_softmax(-1), head.logits(student_ND).log_softmax(-1)
    kl_N = (t_NV.exp() * (t_NV - s_NV)).sum(-1)
    ce_t, ce_s = (None if labels_N is None else -x.gather(1, labels_N[:, None])[:, 0] for x in (t_NV, s_NV))
    weighted = kl_N if weight_N is None else kl_N * weight_N
    return KLHead(weighted.sum(), kl_N.detach(), ce_t, ce_s, (t_NV.argmax(-1) == s_NV.argmax(-1)).to(kl_N.dtype))
