"""saelora adapt: low-rank adapt a model around its SAEs, or what else makes it work through them."""

from dataclasses import dataclass
from typing import Any, Literal

from saelora.config import Configuration, configured, option
from saelora.jobs.run import RunConfig
from saelora.jobs.training_options import TrainConfig
from saelora.jobs.tune import tune
from saelora.limits import LEARNING_RATE, OneOf, Within, placement
from saelora.options import DataConfig, ModelConfig, SAEConfig
from saelora.report.text import loss_table


@dataclass(kw_only=True)
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
        None, "peak learning rate of the SAE's own weights; default: as --lr", limit=LEARNING_RATE
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


@dataclass(kw_only=True)
class Config(ModelConfig, SAEConfig, DataConfig, AdapterConfig, TrainConfig, RunConfig):
    """Options of adapt"""


def adapt(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Adapt a model around its SAEs and measure what it bought.

    Writes to ``out``: the PEFT adapter, saelora.json, results.json, metrics.jsonl, a card and the learning curve. With
    method linear there is no adapter but ``sae/``, the SAE with the map folded in, in SAELens's native format (several:
    ``sae/HOOKPOINT/``); with lora+sae there are both.

    Returns:
        What results.json holds: ce_base, ce_sae, ce_adapted, ce_adapted_clean (nats per predicted token), gap_closed,
        kl_*, loss_recovered_*, intervals, token counts, seconds, history.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    return tune(configured(Config, config, options), "adapt")


def render(results: dict[str, Any]) -> str:
    """The results as a person reads them."""
    return loss_table(results)
