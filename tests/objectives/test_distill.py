"""The distillation step against a step written out plainly, in float64."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

import families
from families import D_MODEL, VOCAB
from saelora.core.lora import lora_config
from saelora.core.splice import splice
from saelora.errors import NonFiniteLoss
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from tiny_saes import SPARE_SPECIAL, TinySAE

N_STEPS, SITE = 4, Hookpoint(1)
RECIPE: dict[str, Any] = {"lr": 1e-2, "schedule": "linear", "warmup": 0.5, "weight_decay": 0.1, "clip": 0.05}
RECIPE |= {"betas": (0.9, 0.99)}


def adapted(name: str = "llama", layers: tuple[int, ...] = (2, 3), *, dropout: float = 0.0, moved: bool = False) -> Any:
    """A PEFT model of a family, in float64 and, as after get_peft_model, in training mode."""
    model = copy.deepcopy(families.tiny(name))
    torch.manual_seed(0)
    peft_model = get_peft_model(model, lora_config(model, list(layers), rank=2, alpha=4.0, dropout=dropout)).double()
    if moved:  # away from the start, where B is zero and dropout cannot act
        draw = torch.Generator().manual_seed(1)
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return peft_model.train()


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    rows = torch.randint(3, VOCAB, (2 * N_STEPS, 9), generator=draw)
    rows[:, 0], rows[::3, 5] = families.BOS, families.EOS
    return list(rows.split(2))


@contextmanager
def distill(model: Any, sae: nn.Module | None = None, **recipe: Any) -> Iterator[Distill]:
    with splice(model, {SITE: sae or TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:  # type: ignore[dict-item]
        yield Distill(model, [Branch("default", spliced, DistillRecipe(**{**RECIPE, **recipe}))], n_rows=2 * N_STEPS)


def trained(model: Any, sae: nn.Module | None = None, **recipe: Any) -> list[dict[str, Tensor]]:
    with distill(model, sae, **recipe) as objective:
        return [objective.step(rows, i / N_STEPS) for i, rows in enumerate(batches())]


def naive_kl(model: Any, rows: Tensor) -> Tensor:
    """Two whole forwards, whole logits; the SAE put in by a hook of its own."""
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        teacher = model(input_ids=rows).logits
    sae, keep = TinySAE(D_MODEL), (rows > 2)[..., None]
    layers = model.base_model.model.model.layers
    handle = layers[SITE.layer].register_forward_hook(
        lambda module, args, out: torch.where(keep, sae.decode(sae.encode(out)), out)
    )
    student = model(input_ids=rows).logits
    handle.remove()
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")


@pytest.mark.parametrize("layers", [(2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("loss", ["token_mean", "sequence_sum"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
# SPEC 3.2
def test_steps_equal_plain_steps(name: str, layers: tuple[int, ...], loss: str) -> None:
    ours, theirs = adapted(name, layers), adapted(name, layers)
    outs = trained(ours, loss=loss)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=RECIPE["betas"], weight_decay=RECIPE["weight_decay"])
    for i, rows in enumerate(batches()):
        kl = naive_kl(theirs, rows)
        optimizer.zero_grad()
        (kl / (rows.numel() if loss == "token_mean" else len(rows))).backward()
        norm = nn.utils.clip_grad_norm_(parameters, RECIPE["clip"])
        assert norm > RECIPE["clip"]  # else clipping is not tested
        optimizer.param_groups[0]["lr"] = RECIPE["lr"] * min(1, (i + 1) / 2) * (1 - (i + 0.5) / N_STEPS)
        optimizer.step()
        torch.testing.assert_close(outs[i]["loss"], kl.detach() / rows.numel(), rtol=1e-7, atol=0)
        torch.testing.assert_close(outs[i]["grad_norm"], norm, rtol=1e-6, atol=0)
    found = dict(ours.named_parameters())
    for parameter_name, expected in theirs.named_parameters():
        torch.testing.assert_close(found[parameter_name], expected, rtol=1e-6, atol=1e-9)


# SPEC 3.2
def test_sequence_sum_is_token_mean_times_the_context() -> None:
    norms = {loss: trained(adapted(), loss=loss)[0]["grad_norm"] for loss in ("token_mean", "sequence_sum")}
    context = batches()[0].shape[1]
    torch.testing.assert_close(norms["sequence_sum"], context * norms["token_mean"])


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_both_models_run_in_the_half_precision_that_is_given_and_else_in_their_own(autocast: Any) -> None:
    model, seen = adapted().float(), set()
    for layer in model.base_model.model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    with splice(model, {SITE: TinySAE(D_MODEL).float()}, SPARE_SPECIAL) as spliced:  # type: ignore[dict-item]
        recipe = DistillRecipe(**RECIPE)
        Distill(model, [Branch("default", spliced, recipe)], n_rows=2, autocast=autocast).step(batches()[0], 0.0)
    assert seen == {autocast or torch.float32}


@pytest.mark.parametrize("layers", [(2, 3), (0, 1, 2, 3)])
# SPEC 3.3
def test_only_the_adapter_changes(layers: tuple[int, ...]) -> None:
    model, sae = adapted(layers=layers), TinySAE(D_MODEL)
    before = {name: p.detach().clone() for name, p in [*model.named_parameters(), *sae.named_parameters()]}
    trained(model, sae)
    after = dict([*model.named_parameters(), *sae.named_parameters()])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert all(p.grad is None for name, p in after.items() if "lora_" not in name)


def test_dropout_acts_on_the_student() -> None:
    with distill(adapted(dropout=0.5, moved=True)) as objective:
        rows = batches()[0]
        torch.manual_seed(0)
        first, second = objective.loss(rows), objective.loss(rows)
        torch.manual_seed(0)
        again = objective.loss(rows)
    assert first != second
    assert first == again


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # GPT-2 has dropout of its own, 0.1 in its configuration
# SPEC 3.5
def test_without_adapter_dropout_nothing_is_random(name: str) -> None:
    with distill(adapted(name, moved=True)) as objective:
        rows = batches()[0]
        assert objective.loss(rows) == objective.loss(rows)


# SPEC 3.5
def test_dropout_does_not_reach_the_teacher() -> None:
    """With B zero an adapter gives zero, dropped out or not, so only the teacher's own dropout could change KL."""
    with distill(adapted("gpt2", dropout=0.5)) as dropped, distill(adapted("gpt2")) as plain:
        rows = batches()[0]
        assert dropped.loss(rows) == plain.loss(rows)


def test_training_mode_and_splice_are_as_before_after_a_step() -> None:
    model = adapted(dropout=0.5)
    with distill(model) as objective:
        before = [module.training for module in model.modules()]
        objective.step(batches()[0], 0.0)
        assert [module.training for module in model.modules()] == before
        assert objective.runs[0].branch.spliced.enabled


def test_state_restores_bit_for_bit() -> None:
    whole = adapted()
    trained(whole)
    first, second = adapted(), adapted(moved=True)
    with distill(first) as objective:
        for i in (0, 1):
            objective.step(batches()[i], i / N_STEPS)
        state = copy.deepcopy(objective.state_dict())
    with distill(second) as objective:
        objective.load_state_dict(state)
        for i in (2, 3):
            objective.step(batches()[i], i / N_STEPS)
    found = dict(second.named_parameters())
    assert all(torch.equal(found[name], p) for name, p in whole.named_parameters())


@pytest.mark.parametrize("weights", ["lora_A", "lora_B"])
# SPEC 12.7
def test_non_finite_loss_changes_nothing(weights: str) -> None:
    model = adapted()
    name = next(name for name, _ in model.named_parameters() if weights in name)
    dict(model.named_parameters())[name].data.fill_(torch.nan)
    with distill(model) as objective:
        before = copy.deepcopy(objective.state_dict())
        with pytest.raises(NonFiniteLoss):
            objective.step(batches()[0], 0.0)
        after = objective.state_dict()
    assert all(
        torch.equal(p, after["default"]["adapter"][k]) for k, p in before["default"]["adapter"].items() if k != name
    )
    assert not after["default"]["optimizer"]["state"]


BAD = {
    "lr": [-1.0, float("nan"), float("inf")],
    "warmup": [-0.1, 1.1],
    "weight_decay": [-1.0],
    "clip": [-1.0, float("nan")],
    "betas": [(0.9,), (0.9, 1.0), (-0.1, 0.9)],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_recipe_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    from saelora.errors import InputError

    with pytest.raises(InputError, match=key):
        DistillRecipe(**{key: value})
