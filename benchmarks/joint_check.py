"""Whether an arm of the bank ends where the package's ``Distill`` takes it alone."""

from dataclasses import replace
from typing import Any

import torch
from joint_arms import IDEAS, Arm
from joint_bank import Bank, Lot
from torch import Tensor

from saelora.assemble import Assembled, autocast_dtype
from saelora.core.lora import layers_of, lora_config
from saelora.core.splice import splice
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.objectives.trainable_sae import TrainableSAE

JOINT = Arm("joint", rank=64, lr=1.5e-3, part="decoder", sae_lr=1.5e-3)
ARMS = [
    Arm("lora", rank=64, lr=1.5e-3),
    JOINT,
    Arm("joint-sae", rank=64, lr=1.5e-3, part="sae", sae_lr=6e-4),
    Arm("sae", part="sae", sae_lr=6e-4),
    Arm("decoder", part="decoder", sae_lr=1.5e-3),
]
RANK_256 = replace(IDEAS["rsLoRA 256, rate / 16"].of(JOINT, "rslora") or JOINT, schedule="cosine")
SEED, BATCH_ROWS = 0, 2


def check(assembled: Assembled, rows: Tensor) -> dict[str, Any]:
    """A few steps of each kind of arm, in the bank beside others and by Distill alone, from the same weights.

    Returns:
        By arm: both ways' KL at each step, and the distance between the weights reached over the way travelled.
    """
    lots = [ARMS[:4], ARMS[4:], [RANK_256]]
    bank = Bank(assembled)
    made = [Lot(bank, arms, SEED) for arms in lots]
    begun = [[[w.detach().clone() for w in student.weights] for student in lot.students] for lot in made]
    losses: dict[str, list[float]] = {arm.name: [] for arms in lots for arm in arms}
    with bank.installed():
        for first in range(0, len(rows), BATCH_ROWS):
            ids = rows[first : first + BATCH_ROWS].to(bank.device)
            clean = bank.teacher(ids)
            for lot in made:
                for student, kl in zip(lot.students, bank.gradients(lot, ids, clean), strict=True):
                    student.update(first / len(rows), len(ids) / len(rows))
                    losses[student.arm.name].append(float(kl))
    out = {}
    for lot, starts in zip(made, begun, strict=True):
        for student, start in zip(lot.students, starts, strict=True):
            alone, weights = _alone(assembled, bank, student.arm, rows)
            apart = sum(float((a.detach() - b).square().sum()) for a, b in zip(student.weights, weights, strict=True))
            moved = sum(float((a - b).square().sum()) for a, b in zip(start, weights, strict=True))
            there = {"bank": losses[student.arm.name], "distill": alone}
            out[student.arm.name] = {**there, "weights_apart": (apart / moved) ** 0.5}
    return out


def _alone(assembled: Assembled, bank: Bank, arm: Arm, rows: Tensor) -> tuple[list[float], list[Tensor]]:
    """KL of each step and the final weights, in the bank's order, by the package."""
    from peft import get_peft_model

    model: Any = assembled.loaded.model
    lot = Lot(bank, [arm], SEED)
    adapted: list[tuple[int, Any]] = []
    if arm.rank:
        layers = layers_of("after", [bank.hookpoint], bank.anatomy.n_layers)
        config = lora_config(model, layers, rank=arm.rank, alpha=arm.rank, use_rslora=arm.rslora)
        model = get_peft_model(model, config)
        for layer, names in bank.shapes.items():
            for name in names:
                module = bank.anatomy.layers[layer].get_submodule(name)
                module.lora_A["default"].weight.data.copy_(lot.factors[f"{layer}.{name}"][0][0])
                adapted.append((layer, module))
    sae: Any = bank.sae if arm.part is None else TrainableSAE(bank.sae, arm.part).to(bank.device)
    lr = arm.lr or arm.sae_lr
    recipe = DistillRecipe(lr=lr, sae_lr=arm.sae_lr if arm.part else None, schedule=arm.schedule)  # type: ignore[arg-type]
    try:
        with splice(model, {bank.hookpoint: sae}, assembled.token_mask) as spliced:
            branch = Branch("default", spliced, recipe)
            distill = Distill(model, [branch], n_rows=len(rows), autocast=autocast_dtype(assembled.loaded))
            batches = rows.to(bank.device).split(BATCH_ROWS)
            found = [float(distill.step(batch, i * BATCH_ROWS / len(rows))["loss"]) for i, batch in enumerate(batches)]
        weights = [
            torch.cat(
                [
                    factor.detach().flatten().clone()
                    for where, module in adapted
                    if where == layer
                    for factor in (module.lora_A["default"].weight, module.lora_B["default"].weight)
                ]
            )
            for layer in (bank.shapes if arm.rank else ())
        ]
        tuned = [p.detach().clone() for p in sae.tuned_parameters().values()] if arm.part else []
    finally:
        if arm.rank:
            model.unload()
    return found, [*weights, *tuned]
