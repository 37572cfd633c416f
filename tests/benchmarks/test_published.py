"""The steps that ours is timed against do the same work: equal gradients up to their documented scale, in float64."""

import copy
from typing import Any

import pytest
import torch
from published import CLIP, LR, HandWritten, Published, copy_sharing_weights, published_kl, with_adapter
from torch import Tensor

import families
from families import BOS, D_MODEL, EOS, PAD, VOCAB
from saelora.core.splice import splice
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from tiny_saes import SPARE_SPECIAL, TinySAE

SITE, RANK, ALPHA, N_ROWS = Hookpoint(1), 2, 4.0, 3
ARM = {"sae": TinySAE(D_MODEL), "layer": SITE.layer, "kept_ids": (PAD, BOS, EOS)}


def adapted(placement: str, dropout: float = 0.0) -> Any:
    """A llama with an adapter that has left its start, where B is zero."""
    model = copy.deepcopy(families.tiny("llama"))
    model = with_adapter(model, placement, SITE, rank=RANK, alpha=ALPHA, dropout=dropout).double()
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return model


def batch() -> Tensor:
    rows = torch.randint(3, VOCAB, (N_ROWS, 11), generator=torch.Generator().manual_seed(2))
    rows[:, 0], rows[1, 5] = BOS, EOS
    return rows


def our_gradient(placement: str) -> tuple[Tensor, dict[str, Tensor]]:
    """KL summed over all tokens, and its gradient."""
    model = adapted(placement)
    with splice(model, {SITE: ARM["sae"]}, SPARE_SPECIAL) as spliced:
        loss = Distill(model, [Branch("default", spliced, DistillRecipe())], n_rows=N_ROWS).loss(batch())
        loss.backward()
    return loss.detach(), gradients(model)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_scaled(arm: Any, scale: float, placement: str) -> None:
    """The arm's loss and gradient are ours, summed over tokens, times the scale."""
    loss = arm.loss(batch())
    loss.backward()
    expected_loss, expected = our_gradient(placement)
    # llama's norms and eager softmax compute in float32 whatever the weights are
    torch.testing.assert_close(loss.detach(), scale * expected_loss, rtol=1e-6, atol=0)
    found = gradients(arm.model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - scale * expected[name]).norm() < 1e-5 * scale * expected[name].norm(), name


@pytest.mark.parametrize("placement", ["after", "all"])
def test_published_gradient_is_ours_summed_over_a_row_s_tokens(placement: str) -> None:
    arm = Published(adapted(placement, dropout=0.1), **ARM)
    arm.model.eval()  # dropout off
    assert_scaled(arm, 1 / N_ROWS, placement)


@pytest.mark.parametrize("placement", ["after", "all"])
def test_handwritten_gradient_is_ours_per_token(placement: str) -> None:
    assert_scaled(HandWritten(adapted(placement), **ARM), 1 / batch().numel(), placement)


def test_published_step_is_eager_with_dropout_and_clips() -> None:
    arm = Published(adapted("after", dropout=0.1).eval(), **ARM)
    assert arm.model.get_base_model().config._attn_implementation == "eager"
    assert arm.loss(batch()) != arm.loss(batch())
    before = {name: p.detach().clone() for name, p in arm.model.named_parameters()}
    arm.step(batch())
    after = dict(arm.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    norms = torch.stack([p.grad.norm() for p in arm.parameters()])
    torch.testing.assert_close(norms.norm(), torch.tensor(CLIP, dtype=torch.float64), rtol=1e-4, atol=0)
    moved = max((after[name] - before[name]).abs().max() for name in changed)
    assert LR / 2 < moved < 2 * LR  # AdamW's first step is as long as its learning rate


def test_handwritten_step_has_no_dropout() -> None:
    arm = HandWritten(adapted("after", dropout=0.1).train(), **ARM)
    assert arm.loss(batch()) == arm.loss(batch())


def test_the_hook_is_gone_after_a_step() -> None:
    arm = HandWritten(adapted("after"), **ARM)
    before = arm.model(input_ids=batch()).logits
    arm.loss(batch())
    assert torch.equal(arm.model(input_ids=batch()).logits, before)


def test_published_kl_is_the_sum_over_tokens_divided_by_rows() -> None:
    draw = torch.Generator().manual_seed(3)
    teacher, student = (torch.randn(2, 5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(published_kl(teacher, student), (p * (p / q).log()).sum() / 2)


def test_copies_share_weights_and_nothing_else() -> None:
    model = families.tiny("llama")
    copied = copy_sharing_weights(model)
    weights = zip(model.parameters(), copied.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in weights)
    with_adapter(copied, "after", SITE, rank=RANK, alpha=ALPHA)
    assert not any("lora_" in name for name, _ in model.named_parameters())
