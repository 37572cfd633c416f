"""The chunked KL head against full logits and autograd, and against torch's own kl_div."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from saelora.core.head import Head
from saelora.core.kl_head import chunk_size, kl_head, kl_head_reference, kl_heads

N, D, V = 37, 12, 50
HEADS = {"plain": {}, "softcap": {"softcap": 1.5}, "scale": {"scale": 0.3}, "bias": {"bias": True}}
HEADS["all"] = {"softcap": 1.5, "scale": 0.3, "bias": True}


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def head(request) -> Head:
    options = dict(request.param)
    bias = random(V, seed=3) if options.pop("bias", False) else None
    return Head(random(V, D, seed=2), bias, **options)


@pytest.fixture
def hidden():
    student = random(N, D, seed=0).requires_grad_()
    return student, student.detach() + 0.5 * random(N, D, seed=1)


WEIGHT = (torch.arange(N) % 4).double()  # every fourth token is masked out
LABELS = torch.arange(N) * 7 % V


def naive(student, teacher, head, weight):
    def log_probs(hidden):
        logits = (hidden @ head.weight.T + (0 if head.bias is None else head.bias)) * head.scale
        return F.log_softmax(logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh(), -1)

    t_NV, s_NV = log_probs(teacher), log_probs(student)
    kl_N = F.kl_div(s_NV, t_NV, log_target=True, reduction="none").sum(-1)
    return (kl_N * weight).sum(), kl_N, *(F.nll_loss(x, LABELS, reduction="none") for x in (t_NV, s_NV))


@pytest.mark.parametrize("chunk", [1, 8, N, 100])
@pytest.mark.parametrize("function", [kl_head, kl_head_reference])
# SPEC 3.1
def test_kl_head_equals_torch_kl_div_in_value_and_gradient(function, chunk, head, hidden):
    student, teacher = hidden
    expected_kl, expected_N, ce_teacher, ce_student = naive(student, teacher, head, WEIGHT)
    (expected_grad,) = torch.autograd.grad(-2.5 * expected_kl, student)
    options = {"chunk": chunk} if function is kl_head else {}
    out = function(student, teacher, head, WEIGHT, LABELS, **options)
    (grad,) = torch.autograd.grad(-2.5 * out.kl, student)
    for got, expected in [
        (out.kl, expected_kl),
        (out.kl_N, expected_N),
        (out.ce_teacher_N, ce_teacher),
        (out.ce_student_N, ce_student),
        (grad, expected_grad),
    ]:
        torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-10, check_dtype=True, msg=None)
    assert (grad[WEIGHT == 0] == 0).all()
    assert (grad[WEIGHT > 0].abs().sum(-1) > 0).all()


def test_no_weight_means_one_and_no_labels_mean_no_cross_entropy(head, hidden):
    out, reference = (f(*hidden, head) for f in (kl_head, kl_head_reference))
    torch.testing.assert_close(out.kl, out.kl_N.sum(), rtol=0, atol=1e-10)
    torch.testing.assert_close(out.kl, reference.kl, rtol=0, atol=1e-10)
    assert (out.ce_teacher_N, out.ce_student_N, out.top1_N) == (None, None, None)


# SPEC 4.7
def test_top1_says_where_both_models_agree(hidden):
    head = Head(random(V, D, seed=2))
    agree = (hidden[0] @ head.weight.T).argmax(-1) == (hidden[1] @ head.weight.T).argmax(-1)
    assert torch.equal(kl_head(*hidden, head, labels_N=LABELS, chunk=8).top1_N.bool(), agree)
    assert 0 < agree.sum() < N


def test_student_equal_to_teacher_scores_zero_with_zero_gradient(head, hidden):
    student = hidden[0]
    out = kl_head(student, student, head, chunk=8)
    assert (out.kl_N >= -1e-12).all()
    assert out.kl.abs() < 1e-12
    assert torch.autograd.grad(out.kl, student)[0].abs().max() < 1e-12


def test_students_of_one_teacher_get_each_its_own_gradient(head, hidden):
    student, teacher = hidden
    other, frozen = random(N, D, seed=5).requires_grad_(), random(N, D, seed=6)
    together = kl_heads([student, frozen, other], teacher, head, WEIGHT, LABELS, chunk=8)
    grads = torch.autograd.grad(3.0 * together[0].kl - together[2].kl, [student, other])
    for i, (h, upstream) in enumerate([(student, 3.0), (frozen, None), (other, -1.0)]):
        alone = kl_head(h, teacher, head, WEIGHT, LABELS, chunk=8)
        for name in ("kl", "kl_N", "ce_teacher_N", "ce_student_N", "top1_N"):
            torch.testing.assert_close(getattr(together[i], name), getattr(alone, name), rtol=0, atol=1e-12)
        if upstream:
            expected = upstream * torch.autograd.grad(alone.kl, h)[0]
            torch.testing.assert_close(grads[i // 2], expected, rtol=0, atol=1e-12)


def test_one_students_loss_alone_can_be_differentiated(hidden):
    student, teacher = hidden
    head, other = Head(random(V, D, seed=2)), random(N, D, seed=5).requires_grad_()
    first, _ = kl_heads([student, other], teacher, head)
    first.kl.backward()
    torch.testing.assert_close(student.grad, torch.autograd.grad(kl_head(student, teacher, head).kl, student)[0])
    assert other.grad is None or not other.grad.any()


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_of_all_tokens_logits_is_made(hidden):
    head = Head(random(V, D, seed=2), softcap=1.5)
    with Largest() as chunked:
        kl_head(*hidden, head, chunk=8).kl.backward()
    with Largest() as plain:
        kl_head_reference(*hidden, head).kl.backward()
    assert plain.numel == N * V
    assert chunked.numel == max(8 * V, N * D, D * V)


# SPEC 3.1
def test_unembedding_and_teacher_get_no_gradient(hidden):
    weight, bias = random(V, D, seed=2).requires_grad_(), random(V, seed=3).requires_grad_()
    teacher = hidden[1].requires_grad_()
    kl_head(hidden[0], teacher, Head(weight, bias), chunk=8).kl.backward()
    assert hidden[0].grad is not None
    assert (weight.grad, bias.grad, teacher.grad) == (None, None, None)


def test_low_precision_hidden_states_are_summed_in_float32(hidden):
    student, teacher = (h.detach().bfloat16().requires_grad_() for h in hidden)
    head = Head(random(V, D, seed=2).bfloat16())
    out = kl_head(student, teacher, head, chunk=8)
    out.kl.backward()
    assert (out.kl.dtype, out.kl_N.dtype, student.grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    torch.testing.assert_close(out.kl, kl_head_reference(student, teacher, head).kl, rtol=1e-5, atol=0)


@pytest.mark.parametrize("apart", [1.0, 0.1])
def test_float32_sums_over_a_real_vocabulary_keep_four_decimals_and_more(apart):
    """Sizes at which a float32 dot product over the vocabulary is wrong by 4e-5 on average, by 1e-3 for a token."""
    weight, teacher = 0.36 * random(49_152, 64, seed=2), random(64, 64, seed=1)
    student = teacher + apart * random(64, 64, seed=0)
    exact = kl_head_reference(student, teacher, Head(weight)).kl_N
    found = kl_head(student.float(), teacher.float(), Head(weight.float())).kl_N.double()
    assert abs((found - exact).mean() / exact.mean()) < 2e-6
    assert (found - exact).abs().max() / exact.mean() < 3e-5


@pytest.mark.parametrize(("d_vocab", "tokens"), [(256_000, 49), (49_152, 256), (10**9, 16)])
def test_chunk_keeps_one_chunks_logits_near_48_mib(d_vocab, tokens):
    assert chunk_size(d_vocab) == tokens
