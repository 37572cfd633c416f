"""How adapt and finetune-sae train: options, and the recipe that they make."""

from dataclasses import dataclass
from typing import Any, Literal

from saelora.config import Configuration, Count, option
from saelora.errors import InputError
from saelora.limits import LEARNING_RATE, NOT_NEGATIVE, POSITIVE, SHARE, Within
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.train.optim import Schedule

Method = Literal["lora", "linear", "lora+sae", "sae"]
ADAPTED: tuple[Method, ...] = ("lora", "lora+sae")  # methods with a PEFT adapter


@dataclass(kw_only=True)
class TrainConfig(Configuration):
    """Training"""

    tokens: Count = option(Count(15_000_000), "tokens to adapt on; fewer where the data holds fewer", limit=POSITIVE)
    lr: float = option(DistillRecipe.lr, "peak learning rate of AdamW", limit=LEARNING_RATE)
    schedule: Schedule = option(DistillRecipe.schedule, "after the warm-up: linear or cosine to zero, or constant")
    warmup: float = option(DistillRecipe.warmup, "share of the run over which lr rises from 0", limit=SHARE)
    weight_decay: float = option(DistillRecipe.weight_decay, "AdamW weight decay", limit=NOT_NEGATIVE)
    betas: tuple[float, ...] = option(DistillRecipe.betas, "AdamW betas", limit=Within(least=0, below=1))
    clip: float = option(DistillRecipe.clip, "largest gradient norm; 0 turns clipping off", limit=NOT_NEGATIVE)
    loss: Literal["token_mean", "sequence_sum"] = option(
        DistillRecipe.loss, "KL per token, or summed over a sequence as in the published code"
    )
    objective: Literal["kl", "kl+mse"] = option(
        DistillRecipe.objective,
        "KL alone, or half of KL and half of the SAE's own error, kept in balance; the latter where the SAE trains",
    )
    history_points: int = option(6, "evaluations along the way, for the learning curve", limit=NOT_NEGATIVE)
    history_tokens: Count = option(Count(4096), "held-out tokens of each of them", limit=POSITIVE)
    samples: int = option(0, "sample continuations to write: original, spliced, adapted", limit=NOT_NEGATIVE)


def recipe_of(config: Any) -> DistillRecipe:
    """The optimisation part of a configuration.

    Raises:
        InputError: a value out of range, or an objective that the method cannot have.
    """
    if config.objective == "kl+mse" and config.method == "lora":
        raise InputError(
            "objective kl+mse weighs the SAE's own error, which method lora leaves as it is: use kl, or another method"
        )
    return DistillRecipe(
        lr=config.lr,
        schedule=config.schedule,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        betas=config.betas,
        clip=config.clip,
        loss=config.loss,
        objective=config.objective,
        sae_lr=getattr(config, "sae_lr", None),
    )
