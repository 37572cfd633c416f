"""Every way to train through an SAE: its step against one written out plainly, in float64."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import D_MODEL
from method_steps import (
    METHODS,
    N_STEPS,
    RECIPE,
    Method,
    batches,
    model_with,
    objective,
    train,
    trainable_saes,
    trained,
)
from saelora.core.lora import parameters_of
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.evals.loss import evaluate_branches, evaluate_loss
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.objectives.trainable_sae import TrainableSAE
from tiny_saes import SPARE_SPECIAL
from trainable_saes import made


def plain_step(model: Any, saes: dict[Hookpoint, Any], rows: Tensor, adapted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """KL summed over tokens, FVU and mean relative error: whole forwards with hooks, the SAEs written out."""
    keep = (rows > 2)[..., None]
    with torch.no_grad(), model.disable_adapter() if adapted else ExitStack():
        teacher = model(input_ids=rows).logits
    seen, handles = [], []

    def hook(sae: Any) -> Callable[..., Any]:
        def replace(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            recon = naive_recon(sae, out)
            seen.append((out.detach()[keep[..., 0]], recon[keep[..., 0]]))
            return torch.where(keep, recon, out)

        return replace

    for hookpoint, sae in saes.items():
        layer = anatomy_of(model).layers[hookpoint.layer]
        handles.append((layer.mlp if hookpoint.site == "mlp_out" else layer).register_forward_hook(hook(sae)))
    student = model(input_ids=rows).logits
    for handle in handles:
        handle.remove()
    kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    fvus = [(x - recon).square().sum() / (x - x.mean(0)).square().sum() for x, recon in seen]
    relative = [((x - recon).square().sum(-1) / x.square().sum(-1)).mean() for x, recon in seen]
    return kl, torch.stack(fvus).mean(), torch.stack(relative).mean()


def naive_recon(sae: Any, x: Tensor) -> Tensor:
    inner = sae.sae if isinstance(sae, TrainableSAE) else sae
    latents = torch.relu((x - inner.b_dec) @ inner.W_enc + inner.b_enc)
    if not isinstance(sae, TrainableSAE) or sae.part == "sae":
        return latents @ inner.W_dec + inner.b_dec
    if sae.part == "decoder":
        return latents @ sae.W_dec + sae.bias
    recon = latents @ inner.W_dec + inner.b_dec
    return recon @ (torch.eye(D_MODEL, dtype=x.dtype) + sae.down @ sae.up) + sae.bias


@pytest.mark.parametrize("name", METHODS)
# SPEC 3.6
def test_steps_equal_plain_steps(name: str) -> None:
    method = METHODS[name]
    recipe = DistillRecipe(**{**RECIPE, **method.recipe})
    with objective([method]) as ours:
        outs = train(ours)
        found = trained(ours, 0)
    model, saes = model_with([method]).eval(), trainable_saes(method)
    adapter = [p for n, p in model.named_parameters() if "lora_" in n]
    tuned = [p for sae in saes.values() for p in sae.parameters() if p.requires_grad]
    peaks = [(adapter, recipe.lr), (tuned, recipe.lr if recipe.sae_lr is None else recipe.sae_lr)]
    groups = [{"params": part} for part, _ in peaks if part]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=RECIPE["betas"], weight_decay=RECIPE["weight_decay"])
    for i, rows in enumerate(batches()):
        kl, fvu, relative = plain_step(model, saes, rows, bool(method.layers))
        mean = kl / (rows.numel() if recipe.loss == "token_mean" else len(rows))
        loss = mean if recipe.objective == "kl" else (fvu + mean * (fvu / mean).detach()) / 2
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_([*adapter, *tuned], RECIPE["clip"])
        assert norm > RECIPE["clip"]  # else clipping is not tested
        for group, peak in zip(optimizer.param_groups, [lr for part, lr in peaks if part], strict=True):
            group["lr"] = peak * min(1, (i + 1) / 2) * (1 - (i + 0.5) / N_STEPS)
        optimizer.step()
        torch.testing.assert_close(outs[i]["loss"], kl.detach() / rows.numel(), rtol=1e-7, atol=0)
        torch.testing.assert_close(outs[i]["grad_norm"], norm, rtol=1e-6, atol=0)
        assert ("fvu" in outs[i]) == (recipe.objective == "kl+mse")
        if "fvu" in outs[i]:
            torch.testing.assert_close(outs[i]["fvu"], fvu.detach(), rtol=1e-7, atol=0)
            torch.testing.assert_close(outs[i]["relative_error_mean"], relative.detach(), rtol=1e-7, atol=0)
    expected = {n.replace(".b0.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    expected |= {f"{h}.{n}": p for h, sae in saes.items() for n, p in sae.named_parameters() if p in set(tuned)}
    assert found.keys() == expected.keys()
    for n, weight in expected.items():
        torch.testing.assert_close(found[n], weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
# SPEC 3.3
def test_what_does_not_train_stays_as_it_is(name: str) -> None:
    with objective([METHODS[name]]) as distill:
        modules = [distill.model, *distill.runs[0].branch.spliced.saes.values()]
        before = [(p, p.detach().clone()) for module in modules for p in module.parameters()]
        train(distill)
        training = {id(p) for p in distill.runs[0].trainable.values()}
        changed = {id(p) for p, old in before if not torch.equal(p, old)}
        assert changed == training
        assert all(p.grad is None for p, _ in before if id(p) not in training)


@pytest.mark.parametrize("at_once", [None, 1, 3])
# SPEC 11.1
def test_methods_side_by_side_end_as_each_alone_bit_for_bit(at_once: int | None) -> None:
    methods = list(METHODS.values())
    with objective(methods, at_once=at_once) as together:
        metrics = train(together)
        found = [trained(together, i) for i in range(len(methods))]
    for i, method in enumerate(methods):
        with objective([method]) as alone:
            own = train(alone)
            expected = trained(alone, 0)
        assert found[i].keys() == expected.keys()
        assert all(torch.equal(found[i][n], expected[n]) for n in expected)
        for step, step_alone in zip(metrics, own, strict=True):
            assert step[f"loss/b{i}"] == step_alone["loss"]
            assert step[f"grad_norm/b{i}"] == step_alone["grad_norm"]
            assert step.get(f"fvu/b{i}") == step_alone.get("fvu")


@pytest.mark.parametrize("name", ["lora+sae", "linear", "sae, kl+mse"])
def test_a_resumed_run_ends_with_the_same_weights(name: str) -> None:
    methods = [METHODS[name], METHODS["lora"]]
    with objective(methods) as whole, objective(methods) as first, objective(methods) as rest:
        train(whole)
        first.step(batches()[0], 0.0)
        rest.load_state_dict(copy.deepcopy(first.state_dict()))
        for i in range(1, N_STEPS):
            rest.step(batches()[i], i / N_STEPS)
        for branch in range(2):
            ends = trained(whole, branch), trained(rest, branch)
            assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_a_branch_with_a_frozen_sae_saves_what_it_always_did() -> None:
    with objective([METHODS["lora"]]) as distill:
        train(distill)
        state = distill.state_dict()["b0"]
        assert set(state) == {"adapter", "optimizer", "failed"}
        assert set(state["adapter"]) == set(parameters_of(distill.model, "b0"))
        assert len(state["optimizer"]["param_groups"]) == 1


def test_fitting_counts_what_an_sae_in_training_holds_and_changes_no_result() -> None:
    methods = [METHODS[name] for name in ("lora", "sae, kl+mse", "linear")]
    with objective(methods) as fitted, objective(methods) as plain:
        assert fitted.fit(batches()[0], 1) == 1
        assert all(run.branch.spliced.observer is None for run in fitted.runs)
        train(fitted)
        train(plain)
        for i in range(3):
            assert all(torch.equal(a, trained(plain, i)[n]) for n, a in trained(fitted, i).items())


def test_a_branch_that_has_nothing_to_train_or_to_weigh_is_refused() -> None:
    model = model_with([])
    saes: Any = {Hookpoint(1): made("standard", d_in=D_MODEL)}
    with splice(model, saes, SPARE_SPECIAL) as spliced, pytest.raises(InputError, match="nothing to train"):
        Distill(model, [Branch("b0", spliced)], n_rows=1)
    frozen = Method(None, (2, 3), {"objective": "kl+mse"})
    with pytest.raises(InputError, match=r"kl\+mse.*frozen"), objective([frozen]):
        pass
    with pytest.raises(InputError, match="sae_lr is -1"):
        DistillRecipe(sae_lr=-1)


@pytest.mark.parametrize("name", ["linear", "lora+sae", "lora+sae, adapter far above", "two saes, kl+mse"])
def test_evaluation_sets_trained_saes_against_the_saes_as_they_were(name: str) -> None:
    rows, method = torch.cat(batches()), METHODS[name]
    frozen: Any = dict.fromkeys(method.hookpoints, made("standard", d_in=D_MODEL))
    with objective([method]) as distill, splice(distill.model, frozen, SPARE_SPECIAL) as reference:
        train(distill)
        run = distill.runs[0]
        students = {"b0": run.student}
        found = evaluate_branches(distill.model, students, SPARE_SPECIAL, rows, reference=reference)["b0"].to_json()
        reference.enabled = run.branch.spliced.enabled = False
        with torch.no_grad():
            fvu = None if method.layers else plain_step(distill.model, run.branch.spliced.saes, rows, False)[1]
        exported: Any = {h: sae.export() for h, sae in run.branch.spliced.saes.items()}
        again = evaluate_loss(distill.model, exported, SPARE_SPECIAL, rows, reference=frozen)
        plain = evaluate_loss(distill.model, frozen, SPARE_SPECIAL, rows, arms=["sae"])
    assert ("ce_adapted_clean" in found) == bool(method.layers)
    assert {h: found["saes"][h] for h in found["saes"]} == plain["saes"]
    assert found["ce_sae"] == plain["ce_sae"] != found["ce_adapted"]
    for figure in ("ce_adapted", "kl_adapted", "ce_gain"):
        assert found[figure] == pytest.approx(again[figure], rel=1e-9)
    assert set(found["saes_adapted"]) == set(map(str, method.hookpoints))
    for hookpoint, figures in found["saes_adapted"].items():
        assert figures == pytest.approx(again["saes_adapted"][hookpoint], rel=1e-9)
        assert figures["fvu"] != found["saes"][hookpoint]["fvu"]
    if fvu is not None:
        mean = sum(figures["fvu"] for figures in found["saes_adapted"].values()) / len(found["saes_adapted"])
        assert mean == pytest.approx(float(fvu), rel=1e-9)
