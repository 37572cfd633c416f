"""saelora finetune-sae: train SAEs further, inside the frozen model, so that it predicts what it did without them."""

from typing import Any, ClassVar, Literal

from saelora.config import Count, configured, option
from saelora.evals.loss_result import RunResult
from saelora.jobs.run import RunConfig
from saelora.jobs.train_student import train_student
from saelora.jobs.training_options import TrainConfig
from saelora.limits import LEARNING_RATE, POSITIVE
from saelora.options import SplicedConfig
from saelora.reporting.text import loss_table


class Config(SplicedConfig, TrainConfig, RunConfig):
    """Finetuning"""

    method: ClassVar[Literal["sae"]] = "sae"  # no option: of the methods in training_options this command is one

    part: Literal["sae", "decoder"] = option("sae", "what trains: the whole SAE, or its decoder and output bias alone")
    objective: Literal["kl", "kl+mse"] = option(
        "kl+mse", "half of KL and half of the SAE's own error, kept in balance; or KL alone"
    )
    tokens: Count = option(1_000_000, "tokens to train on; fewer where the data holds fewer", limit=POSITIVE)
    lr: float = option(
        3e-4, "peak learning rate of AdamW; for a small model and short runs, others want less", limit=LEARNING_RATE
    )


def finetune_sae(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Train SAEs inside the frozen model and measure what that bought.

    Writes to ``out``: the SAE in SAELens's native format (several: one in a folder of each hookpoint's name),
    saelora.json, results.json, metrics.jsonl, a card and the learning curve.

    Returns:
        What results.json holds, as for ``adapt``: ce_sae is the SAE as it came, ce_adapted the finetuned one.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    return train_student(configured(Config, config, options), "finetune-sae").to_json()


def render(results: dict[str, Any]) -> str:
    """The results as a person reads them."""
    return loss_table(RunResult.model_validate(results))
