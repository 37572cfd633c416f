"""Options of --parts faithfulness."""

from saelora.config import Configuration, Count, option
from saelora.limits import POSITIVE, Within

_MANY_DRAWS = 100  # each is ten passes through the layers above the SAE


class Options(Configuration):
    """Faithfulness"""

    other_sae: str | None = option(
        None, "a further SAE of the same layer, named as for --sae: how the adapter does under it"
    )
    ablation_draws: int = option(
        3, "draws of random latents to ablate, for each number of latents", limit=Within(least=1, most=_MANY_DRAWS)
    )
    ablation_tokens: Count = option(
        8192,
        "tokens of the held-out text on which latents are ablated, the costliest of these measurements",
        limit=POSITIVE,
    )


def check(config: Options) -> None:
    """Before anything is loaded.

    Raises:
        InputError: no SAE where other_sae says.
    """
    if config.other_sae:
        from saelora.saes.loading import load_sae

        load_sae(config.other_sae)  # loaded again for use: what is wrong with it shows before the other parts have run
