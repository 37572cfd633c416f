"""Every way to train through an SAE, as a person would describe it, and the objective of several at once."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

import families
from families import BOS, D_MODEL, VOCAB
from saelora.core.lora import lora_config
from saelora.core.splice import splice
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.objectives.trainable_sae import Part, TrainableSAE
from tiny_saes import SPARE_SPECIAL
from trainable_saes import made, moved

N_STEPS, RANK = 4, 3
RECIPE: dict[str, Any] = {"lr": 1e-2, "warmup": 0.5, "weight_decay": 0.1, "clip": 0.05, "betas": (0.9, 0.99)}


@dataclass(frozen=True)
class Method:
    """A branch as a person would describe it; no layers: no adapter."""

    part: Part | None = None
    layers: tuple[int, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    hookpoints: tuple[Hookpoint, ...] = (Hookpoint(1),)


BOTH = (Hookpoint(0), Hookpoint(1, "mlp_out"))
METHODS = {
    "lora": Method(layers=(2, 3)),
    "linear": Method("linear"),
    "linear, kl+mse": Method("linear", recipe={"objective": "kl+mse", "loss": "sequence_sum"}),
    "decoder": Method("decoder"),
    "decoder, adapters below": Method("decoder", (0, 1, 2, 3), {"objective": "kl+mse"}),
    "sae": Method("sae"),
    "sae, kl+mse": Method("sae", recipe={"objective": "kl+mse"}),
    "two saes, kl+mse": Method("sae", recipe={"objective": "kl+mse"}, hookpoints=BOTH),
    "lora+sae": Method("sae", (2, 3), {"sae_lr": 3e-3}),
    "lora+sae, adapters below": Method("sae", (0, 1, 2, 3)),
    "lora+sae, adapter far above": Method("sae", (3,), {"objective": "kl+mse", "sae_lr": 3e-3}),
    "linear of two saes": Method("linear", hookpoints=BOTH),
}


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    rows = torch.randint(3, VOCAB, (2 * N_STEPS, 9), generator=draw)
    rows[:, 0], rows[::3, 5] = BOS, families.EOS
    return list(rows.split(2))


def trainable_saes(method: Method) -> dict[Hookpoint, Any]:
    """At each hookpoint a standard SAE, which has a gradient wherever one can have; away from the start where tuned."""
    sae = made("standard", d_in=D_MODEL)
    if method.part is None:
        return dict.fromkeys(method.hookpoints, sae)
    return {h: moved(TrainableSAE(sae, method.part, rank=RANK, seed=i)) for i, h in enumerate(method.hookpoints)}


def model_with(methods: Sequence[Method], dropout: float = 0.0, family: str = "llama") -> Any:
    model: Any = copy.deepcopy(families.tiny(family)).requires_grad_(False)
    wrapped = False
    for i, method in enumerate(methods):
        if method.layers:
            torch.manual_seed(0)
            config = lora_config(model, list(method.layers), rank=2, alpha=4.0, dropout=dropout)
            if wrapped:
                model.add_adapter(f"b{i}", config)
            else:
                model, wrapped = get_peft_model(model, config, adapter_name=f"b{i}"), True
    return model.double()


@contextmanager
def objective(
    methods: Sequence[Method], device: str = "cpu", dropout: float = 0.0, family: str = "llama", **options: Any
) -> Iterator[Distill]:
    model = model_with(methods, dropout, family).to(device)
    with ExitStack() as stack:
        branches = []
        for i, method in enumerate(methods):
            saes = {hookpoint: sae.to(device) for hookpoint, sae in trainable_saes(method).items()}
            spliced = stack.enter_context(splice(model, saes, SPARE_SPECIAL))
            branches.append(Branch(f"b{i}", spliced, DistillRecipe(**{**RECIPE, **method.recipe})))
        yield Distill(model, branches, n_rows=2 * N_STEPS, **options)


def train(distill: Distill) -> list[dict[str, Tensor]]:
    return [distill.step(rows, i / N_STEPS) for i, rows in enumerate(batches())]


def trained(distill: Distill, branch: int) -> dict[str, Tensor]:
    return {name.replace(f".b{branch}.", "."): p.detach().clone() for name, p in distill.runs[branch].trainable.items()}
