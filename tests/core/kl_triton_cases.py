"""The fused KL head against a plain one in float64.

``test_kl_triton.py`` runs this file by itself: Triton's interpreter must be chosen before Triton is first imported, and
nothing else of the suite is to meet it. On a GPU the kernels run as they are.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from saelora.core import kl_triton
from saelora.core.head import Head
from saelora.core.kl_head import kl_head, kl_heads
from saelora.objectives.fitting import _head_bytes

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
N, D, V = 7, 12, 50
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS = {"plain": {}, "softcap": {"softcap": 1.5}, "scale": {"scale": 0.25}, "bias": {"bias": True}}
HEADS["all"] = {"softcap": 1.5, "scale": 0.25, "bias": True}
GRADIENT_BOUND = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative; halves are stored rounded


@pytest.fixture(autouse=True)
def _fused_in_two_blocks(monkeypatch):
    """The kernels go over a row in two blocks, the last of which is not full."""
    monkeypatch.setenv("SAELORA_KL_HEAD", "fused")
    monkeypatch.setattr(kl_triton, "_MOST_COLUMNS", 32)


def steps(*shape, seed, size):
    """Multiples of ``size`` between -2 and 2 of them: products of such numbers are exact in every precision."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(-2, 3, shape, generator=draw) * size).to(DEVICE)


def head_of(dtype=torch.float32, seed=2, bias=False, **options) -> Head:
    bias_V = steps(V, seed=seed + 10, size=0.5).to(dtype) if bias else None
    return Head(steps(V, D, seed=seed, size=0.25).to(dtype), bias_V, **options)


def hidden_of(dtype=torch.float32, seed=0):
    return steps(N, D, seed=seed, size=0.5).to(dtype)


WEIGHT = (torch.arange(N) % 4).float().to(DEVICE)  # every fourth token is masked out
LABELS = (torch.arange(N) * 7 % V).to(DEVICE)


def log_probs(hidden_ND, head):
    logits_NV = hidden_ND @ head.weight.double().T
    logits_NV = (logits_NV + (0 if head.bias is None else head.bias.double())) * head.scale
    return F.log_softmax(logits_NV if head.softcap is None else head.softcap * (logits_NV / head.softcap).tanh(), -1)


def naive(student_ND, teacher_ND, head, own=None):
    """KL of each token, both cross entropies, and the gradient of the weighted sum, in float64."""
    student_ND = student_ND.detach().double().requires_grad_()
    t_NV, s_NV = log_probs(teacher_ND.double(), head), log_probs(student_ND, own or head)
    kl_N = F.kl_div(s_NV, t_NV, log_target=True, reduction="none").sum(-1)
    (grad_ND,) = torch.autograd.grad((kl_N * WEIGHT).sum(), student_ND)
    return kl_N.detach(), *(F.nll_loss(x, LABELS, reduction="none").detach() for x in (t_NV, s_NV)), grad_ND


def assert_is(out, grad_ND, expected, dtype):
    kl_N, ce_teacher_N, ce_student_N, expected_ND = expected
    found = [(out.kl_N, kl_N), (out.ce_teacher_N, ce_teacher_N), (out.ce_student_N, ce_student_N)]
    for got, want in [*found, (out.kl, (kl_N * WEIGHT).sum())]:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    assert grad_ND.dtype == dtype
    assert (grad_ND.double() - expected_ND).norm() <= GRADIENT_BOUND[dtype] * expected_ND.norm()
    assert (grad_ND[WEIGHT == 0] == 0).all()
    assert (grad_ND[WEIGHT > 0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
def test_value_and_gradient_equal_those_of_float64(options, dtype):
    check(options, dtype, chunk=3)


def test_one_block_gives_the_same(monkeypatch):
    monkeypatch.setattr(kl_triton, "_MOST_COLUMNS", 4096)
    check(HEADS["all"], torch.float32, chunk=3)


@pytest.mark.parametrize("chunk", [1, N, None])
def test_chunks_of_any_size_give_the_same(chunk):
    check(HEADS["all"], torch.bfloat16, chunk)


def check(options, dtype, chunk):
    head, teacher = head_of(dtype, **options), hidden_of(dtype, seed=1)
    student = hidden_of(dtype).requires_grad_()
    out = kl_head(student, teacher, head, WEIGHT, LABELS, chunk)
    (grad,) = torch.autograd.grad(-2 * out.kl, student)
    assert_is(out, grad / -2, naive(student, teacher, head), dtype)


def test_value_and_gradient_equal_those_of_the_chunked_code(monkeypatch):
    head = Head(torch.randn(V, D, device=DEVICE), torch.randn(V, device=DEVICE), 0.7, 5.0)
    student, teacher = torch.randn(N, D, device=DEVICE).requires_grad_(), torch.randn(N, D, device=DEVICE)
    fused = kl_head(student, teacher, head, WEIGHT, LABELS)
    (fused_grad,) = torch.autograd.grad(fused.kl, student)
    monkeypatch.setenv("SAELORA_KL_HEAD", "chunked")
    chunked = kl_head(student, teacher, head, WEIGHT, LABELS)
    (chunked_grad,) = torch.autograd.grad(chunked.kl, student)
    for name in ("kl", "kl_N", "ce_teacher_N", "ce_student_N", "top1_N"):
        torch.testing.assert_close(getattr(fused, name), getattr(chunked, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused_grad, chunked_grad, rtol=1e-4, atol=1e-5)


def test_students_with_unembeddings_of_their_own_get_each_its_own_gradient():
    head, teacher = head_of(torch.bfloat16, softcap=2.0), hidden_of(torch.bfloat16, seed=1)
    heads = [head, head_of(seed=5, bias=True), head_of(torch.bfloat16, seed=6, softcap=1.0, scale=0.5)]
    students = [hidden_of(own.weight.dtype, seed).requires_grad_() for own, seed in zip(heads, (3, 4, 5), strict=True)]
    outs = kl_heads(students, teacher, head, WEIGHT, LABELS, chunk=3, student_heads=heads)
    grads = torch.autograd.grad(sum(out.kl for out in outs), students)
    for student, own, out, grad in zip(students, heads, outs, grads, strict=True):
        assert_is(out, grad, naive(student, teacher, head, own), own.weight.dtype)


def test_student_without_gradient_gets_the_same_values():
    head, teacher, students = head_of(softcap=1.5), hidden_of(seed=1), [hidden_of(), hidden_of(seed=3)]
    students[1].requires_grad_()
    outs = kl_heads(students, teacher, head, WEIGHT, LABELS, chunk=3)
    outs[1].kl.backward()
    for student, out in zip(students, outs, strict=True):
        torch.testing.assert_close(out.kl_N.double(), naive(student, teacher, head)[0], rtol=2e-6, atol=2e-6)
    assert students[0].grad is None
    assert students[1].grad.any()


def test_no_labels_mean_no_cross_entropy_and_no_weight_means_one():
    head, student, teacher = head_of(), hidden_of(), hidden_of(seed=1)
    out = kl_head(student, teacher, head)
    torch.testing.assert_close(out.kl_N.double(), naive(student, teacher, head)[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(out.kl, out.kl_N.sum())
    assert (out.ce_teacher_N, out.ce_student_N, out.top1_N) == (None, None, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_student_equal_to_teacher_scores_zero_with_zero_gradient(dtype):
    student = hidden_of(dtype).requires_grad_()
    out = kl_head(student, student.detach(), head_of(dtype, softcap=1.5, bias=True), chunk=3)
    assert not out.kl_N.any()
    assert not torch.autograd.grad(out.kl, student)[0].any()


def test_logits_of_ten_thousand_stay_exact():
    student, teacher = hidden_of().requires_grad_(), hidden_of(seed=1)
    for bias_V in (10_000.0 * steps(V, seed=8, size=0.5).sign(), torch.full((V,), -10_000.0, device=DEVICE)):
        head = Head(head_of().weight, bias_V)
        out = kl_head(student, teacher, head, WEIGHT, LABELS, chunk=3)
        (grad,) = torch.autograd.grad(out.kl, student)
        assert_is(out, grad, naive(student, teacher, head), torch.float32)


def test_float16_holds_the_gradient_of_a_flat_student_and_a_peaked_teacher():
    """What the kernels store for float16 neither overflows nor vanishes."""
    wide = 4096
    weight = torch.zeros(wide, D, device=DEVICE, dtype=torch.float16)
    weight[7, 0] = 32.0
    weight[:, 1] = 1.0
    teacher, student = (torch.zeros(4, D, device=DEVICE, dtype=torch.float16) for _ in range(2))
    teacher[:, 0] = 2.0
    student.requires_grad_()
    out = kl_head(student, teacher, Head(weight))
    torch.testing.assert_close(out.kl_N, torch.full_like(out.kl_N, float(torch.tensor(wide).log())))
    (grad,) = torch.autograd.grad(out.kl, student)
    torch.testing.assert_close(grad[:, 0], torch.full_like(grad[:, 0], 32 * (1 / wide - 1)), rtol=1e-3, atol=0)
    assert grad[:, 1].abs().max() < 1e-2  # all probabilities together do not move


@pytest.mark.parametrize("out_of_use", [slice(40, 50), slice(0, 34)], ids=["last", "first"])
def test_tokens_of_no_probability_are_as_if_they_were_not_there(out_of_use):
    bias_V = torch.zeros(V, device=DEVICE)
    bias_V[out_of_use] = -torch.inf
    used = bias_V == 0
    weight, labels = head_of().weight, used.nonzero()[:N, 0]
    student, teacher = hidden_of().requires_grad_(), hidden_of(seed=1)
    out = kl_head(student, teacher, Head(weight, bias_V), WEIGHT, labels)
    fewer = kl_head(student, teacher, Head(weight[used].contiguous()), WEIGHT, torch.arange(len(labels), device=DEVICE))
    for name in ("kl", "kl_N", "ce_teacher_N", "ce_student_N", "top1_N"):
        torch.testing.assert_close(getattr(out, name), getattr(fewer, name))
    grads = [torch.autograd.grad(each.kl, student)[0] for each in (out, fewer)]
    torch.testing.assert_close(*grads)


def test_kl_is_infinite_where_the_student_excludes_what_the_teacher_expects():
    bias_V = torch.zeros(V, device=DEVICE)
    bias_V[3] = -torch.inf
    head = head_of()
    (out,) = kl_heads([hidden_of()], hidden_of(seed=1), head, student_heads=[Head(head.weight, bias_V)])
    assert (out.kl_N == torch.inf).all()


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_token_that_is_no_number_stays_none_and_spoils_no_other(where):
    states = {"student": hidden_of(), "teacher": hidden_of(seed=1)}
    states[where][4, 2] = torch.nan
    states["student"].requires_grad_()
    out = kl_head(states["student"], states["teacher"], head_of(softcap=1.5), labels_N=LABELS, chunk=3)
    (grad,) = torch.autograd.grad(out.kl, states["student"])
    others = torch.arange(N, device=DEVICE) != 4
    assert out.kl_N[4].isnan()
    assert grad[4].isnan().all()
    assert out.kl_N[others].isfinite().all()
    assert grad[others].isfinite().all()


@pytest.mark.parametrize("label", [-100, V])
def test_a_label_outside_the_vocabulary_reads_nothing_and_is_no_number(label):
    labels = LABELS.clone()
    labels[5] = label
    out = kl_head(hidden_of(), hidden_of(seed=1), head_of(bias=True), labels_N=labels)
    for ce_N in (out.ce_teacher_N, out.ce_student_N):
        assert ce_N[5].isnan()
        assert ce_N.isfinite().sum() == N - 1


def test_top1_compares_the_first_of_the_likeliest_tokens():
    head, student, teacher = head_of(), hidden_of(), hidden_of(seed=1)
    tops = [(states.double() @ head.weight.double().T).cpu().numpy().argmax(-1) for states in (student, teacher)]
    agree = torch.from_numpy(tops[0] == tops[1]).to(DEVICE)
    assert torch.equal(kl_head(student, teacher, head, labels_N=LABELS, chunk=3).top1_N.bool(), agree)

    weight = torch.zeros(V, D, device=DEVICE)
    weight[[3, 9, 40], 0] = 1.0  # three that are equally likely, the last in another block
    weight[[3, 9, 40], [1, 2, 3]] = 1.0
    basis = torch.eye(D, device=DEVICE)
    out = kl_head(basis[[0, 0, 0]], basis[[1, 2, 3]], Head(weight), labels_N=LABELS[:3])
    assert out.top1_N.tolist() == [1.0, 0.0, 0.0]


class Products(TorchDispatchMode):
    """Counts matrix products, and notes the size of the largest tensor that any operation makes."""

    numel, count = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():  # the interpreter copies bytes
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("n_students", [1, 3])
def test_a_chunk_takes_one_product_for_the_teacher_and_two_a_student_and_holds_no_other_logits(n_students):
    students = [hidden_of(seed=i).requires_grad_() for i in range(n_students)]
    with Products() as found:
        outs = kl_heads(students, hidden_of(seed=9), head_of(softcap=1.5, bias=True), WEIGHT, LABELS, chunk=N)
        sum(out.kl for out in outs).backward()
    assert found.count == 1 + 2 * n_students
    assert found.numel == max(N * V, V * D)


@pytest.mark.parametrize(("d_vocab", "itemsize", "tokens"), [(256_000, 2, 384), (49_152, 2, 2048), (10**9, 4, 16)])
def test_chunks_are_whole_tiles_where_they_can_be(d_vocab, itemsize, tokens):
    assert kl_triton.chunk_size(d_vocab, itemsize) == tokens


def test_the_trial_passes_here_and_sees_a_kernel_that_is_wrong(monkeypatch):
    kl_triton.trial(torch.device(DEVICE))
    monkeypatch.setattr(kl_triton, "_tiling", lambda d_vocab: {"BLOCK": 32, "num_warps": 1})
    kl_triton.trial(torch.device(DEVICE))
    monkeypatch.setattr(kl_triton._Logits, "cap", 3.0)
    with pytest.raises(ArithmeticError, match="away from the chunked code"):
        kl_triton.trial(torch.device(DEVICE))


def test_a_step_is_fitted_by_what_the_kernels_hold(monkeypatch):
    head = head_of(torch.bfloat16)
    held = _head_bytes(head, 10_000)
    assert held == 2 * 2 * V * 10_000
    monkeypatch.setenv("SAELORA_KL_HEAD", "chunked")
    assert _head_bytes(head, 10_000) == 5 * 4 * V * 10_000
