"""How adapt and finetune-sae train: options, and the recipe that they make."""

from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from saelora.config import Configuration, Count, option, updated
from saelora.core.replacement import replacement_of
from saelora.errors import InputError
from saelora.limits import LEARNING_RATE, NOT_NEGATIVE, POSITIVE, SHARE, OneOf, Within, placement
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.train.optim import Schedule

if TYPE_CHECKING:
    from saelora.jobs import adapt, finetune_sae

StudentConfig: TypeAlias = "adapt.Config | finetune_sae.Config"
S = TypeVar("S", bound="StudentConfig")
Method = Literal["lora", "linear", "lora+sae", "sae"]
ADAPTED: tuple[Method, ...] = ("lora", "lora+sae")  # methods with a PEFT adapter


class TrainConfig(Configuration):
    """Training"""

    tokens: Count = option(15_000_000, "tokens to adapt on; fewer where the data holds fewer", limit=POSITIVE)
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
    graph: Literal["auto", "on", "off"] = option(
        "auto",
        "record a step as one CUDA graph and replay it: the same results; auto on an NVIDIA GPU, where it can be",
    )
    history_points: int = option(6, "evaluations along the way, for the learning curve", limit=NOT_NEGATIVE)
    history_tokens: Count = option(4096, "held-out tokens of each of them", limit=POSITIVE)
    samples: int = option(0, "sample continuations to write: original, spliced, adapted", limit=NOT_NEGATIVE)


class AdapterConfig(Configuration):
    """Adapter"""

    method: Literal["lora", "linear", "lora+sae"] = option(
        "lora",
        "what trains: lora, an adapter; linear, a low-rank affine map of the reconstruction; lora+sae, adapter and SAE",
    )
    part: Literal["decoder", "sae"] = option(
        "decoder", "what of the SAE trains with lora+sae: its decoder and output bias (latents stay), or all of it"
    )
    sae_lr: float | None = option(
        None,
        "peak learning rate of the SAE's own weights; default: a tenth of --lr, with linear --lr itself",
        limit=LEARNING_RATE,
    )
    rank: int = option(64, "LoRA rank; with method linear the map's", limit=Within(least=1, most=65_536))
    alpha: float | None = option(
        None, "LoRA alpha, scaling = alpha / rank; default: the rank, so scaling 1", limit=Within(above=0)
    )
    placement: str = option(
        "after", "adapted layers: after (above the lowest SAE), all, or layers:13,14 (layers:13-20)", limit=placement
    )
    dropout: float = option(0.0, "LoRA dropout, on the student only", limit=Within(least=0, below=1))
    rslora: bool = option(False, "scaling = alpha / sqrt(rank)")
    dora: bool = option(False, "weight-decomposed LoRA")
    init: str = option(
        "default",
        "LoRA initialisation: default, gaussian or orthogonal",
        limit=OneOf(("default", "gaussian", "orthogonal")),
    )


STEP_TOKENS = 16_384  # on a GPU: more to a step make it no faster (docs/performance.md)
LEAST_STEPS = 250  # of a run


def with_batch_rows(config: S, device_type: str) -> S:
    """The configuration with its rows per step settled: on a GPU by the run's length, the same on every GPU.

    What does not fit its memory goes through the model in pieces (see ``saelora.objectives.fitting``).
    """
    if config.batch_rows is not None:
        return config
    tokens = min(STEP_TOKENS, config.tokens // LEAST_STEPS)
    rows = max(1, tokens // config.context) if device_type == "cuda" else 1
    return updated(config, {"batch_rows": rows})


def recipe_of(config: StudentConfig) -> DistillRecipe:
    """The optimisation part of a configuration.

    Raises:
        InputError: a value out of range, an objective that the method cannot have, or a replacement that no adapter can
            be trained around.
    """
    replacement_of(config.replacement_mode, config.add_error)
    if config.add_error:
        raise InputError(
            "add_error makes the spliced model the original as long as nothing is adapted, so there is nothing for "
            "an adapter to win back: adapt without it, and measure with it by evaluate --add-error"
        )
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
        sae_lr=_sae_lr(config),
    )


def _sae_lr(config: StudentConfig) -> float | None:
    """Beside an adapter a decoder wants a tenth of its rate: at the same one it does harm (docs/log.md, 2026-11-28)."""
    if not isinstance(config, AdapterConfig):
        return None
    return config.lr / 10 if config.sae_lr is None and config.method == "lora+sae" else config.sae_lr
