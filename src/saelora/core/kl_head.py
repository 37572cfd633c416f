"""KL between two sets of final hidden states through one frozen unembedding, in chunks of tokens.

No [n_tokens, d_vocab] tensor is ever held, and the unembedding gets no gradient: each chunk forms both models'
logits, adds what is asked for, and keeps only the gradient of the student's hidden states.

Shapes: N tokens, D d_model, V d_vocab, C tokens of a chunk.
"""

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


def kl_head(
    student_ND: Tensor,
    teacher_ND: Tensor,
    head: Head,
    weight_N: Tensor | None = None,
    labels_N: Tensor | None = None,
    chunk: int | None = None,
) -> KLHead:
    """KL(teacher || student) over the full vocabulary, and cross entropies on the way.

    Args:
        student_ND, teacher_ND: hidden states after the final norm; only the student's get a gradient.
        weight_N: each token's weight in the sum (0 leaves it out); default 1.
        labels_N: next tokens, for the cross entropies.
        chunk: tokens formed at a time.

    Source: the objective of arXiv 2501.19406, section 3; teacher entropy included, so a perfect student scores 0.
    """
    weight_N = torch.ones(len(student_ND), device=student_ND.device) if weight_N is None else weight_N
    chunk = chunk or chunk_size(head.weight.shape[0])
    kl, kl_N, ce_t_N, ce_s_N, top1_N = _ChunkedKL.apply(
        student_ND, teacher_ND.detach(), head, weight_N, labels_N, chunk, student_ND.requires_grad
    )
    if labels_N is None:
        ce_t_N = ce_s_N = None
    return KLHead(kl, kl_N, ce_t_N, ce_s_N, top1_N)


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_ND, teacher_ND, head, weight_N, labels_N, chunk, needs_grad):
        acc = torch.promote_types(student_ND.dtype, torch.float32)
        n = len(student_ND)
        kl_N, ce_t_N, ce_s_N, top1_N = (torch.zeros(n, dtype=acc, device=student_ND.device) for _ in range(4))
        grad_ND = torch.empty_like(student_ND) if needs_grad else None
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            t_CV, s_CV = head.logits(teacher_ND[part]), head.logits(student_ND[part])
            top1_N[part] = (t_CV.argmax(-1) == s_CV.argmax(-1)).to(acc)
            # d tanh(z/cap)*cap = 1 - (capped/cap)^2, taken before the logits are overwritten below.
            slope_CV = None if head.softcap is None or not needs_grad else 1 - (s_CV / head.softcap) ** 2
            t_CV -= t_CV.logsumexp(-1, keepdim=True)
            s_CV -= s_CV.logsumexp(-1, keepdim=True)
            if labels_N is not None:
                label_C1 = labels_N[part, None]
                ce_t_N[part], ce_s_N[part] = -t_CV.gather(1, label_C1)[:, 0], -s_CV.gather(1, label_C1)[:, 0]
            p_CV = t_CV.exp()
            t_CV -= s_CV
            kl_N[part] = torch.linalg.vecdot(p_CV, t_CV)
            if grad_ND is not None:
                g_CV = s_CV.exp_().sub_(p_CV).mul_(weight_N[part, None] * head.scale)
                if slope_CV is not None:
                    g_CV *= slope_CV
                grad_ND[part] = (g_CV.to(head.weight.dtype) @ head.weight).to(grad_ND.dtype)
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        ctx.mark_non_differentiable(kl_N, ce_t_N, ce_s_N, top1_N)
        return (kl_N * weight_N).sum(), kl_N, ce_t_N, ce_s_N, top1_N

    @staticmethod
    def backward(ctx, grad_kl, *_):
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_kl.to(grad_ND.dtype), None, None, None, None, None, None


def kl_head_reference(
    student_ND: Tensor, teacher_ND: Tensor, head: Head, weight_N: Tensor | None = None, labels_N: Tensor | None = None
) -> KLHead:
    """The same, the plain way: full logits, autograd. What ``kl_head`` is tested and timed against."""
    t_NV, s_NV = head.logits(teacher_ND.detach()).log_softmax(-1), head.logits(student_ND).log_softmax(-1)
    kl_N = (t_NV.exp() * (t_NV - s_NV)).sum(-1)
    ce_t, ce_s = (None if labels_N is None else -x.gather(1, labels_N[:, None])[:, 0] for x in (t_NV, s_NV))
    weighted = kl_N if weight_N is None else kl_N * weight_N
    return KLHead(weighted.sum(), kl_N.detach(), ce_t, ce_s, (t_NV.argmax(-1) == s_NV.argmax(-1)).to(kl_N.dtype))
