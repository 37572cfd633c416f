"""saelora adapt: low-rank adapt a model around its SAEs, or what else makes it work through them."""

from typing import Any

from saelora.config import configured
from saelora.evals.loss_result import RunResult
from saelora.jobs.run import RunConfig
from saelora.jobs.train_student import train_student
from saelora.jobs.training_options import AdapterConfig, TrainConfig
from saelora.options import SplicedConfig
from saelora.reporting.text import loss_table


class Config(SplicedConfig, AdapterConfig, TrainConfig, RunConfig):
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
    return train_student(configured(Config, config, options), "adapt").to_json()


def render(results: dict[str, Any]) -> str:
    """The results as a person reads them."""
    return loss_table(RunResult.model_validate(results))
