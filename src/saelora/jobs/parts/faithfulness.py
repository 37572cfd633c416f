"""--parts faithfulness: does the adapted model read its SAEs, or go round them?"""

from dataclasses import dataclass
from typing import Any

from saelora.config import Configuration, Count, option
from saelora.core.splice import SAE
from saelora.errors import InputError
from saelora.evals.faithfulness import faithfulness, n_tokens_run
from saelora.jobs.parts import Subject
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import pick_device
from saelora.saes.loading import check_fits, load_sae

_MANY_DRAWS = 100  # each is ten passes through the layers above the SAE


@dataclass(kw_only=True)
class Options(Configuration):
    """Faithfulness"""

    other_sae: str | None = option(
        None, "a further SAE of the same layer, named as for --sae: how the adapter does under it"
    )
    ablation_draws: int = option(3, "draws of random latents to ablate, for each number of latents")
    ablation_tokens: Count = option(
        Count(8192), "tokens of the held-out text on which latents are ablated, the costliest of these measurements"
    )


def check(config: Any) -> None:
    """Before anything is loaded.

    Raises:
        InputError: an option out of range, or no SAE where other_sae says.
    """
    if not 1 <= config.ablation_draws <= _MANY_DRAWS:
        raise InputError(f"ablation_draws is {config.ablation_draws}, expected 1 to {_MANY_DRAWS}")
    if config.ablation_tokens < 1:
        raise InputError(f"ablation_tokens is {config.ablation_tokens}, expected 1 or more")
    if config.other_sae:
        load_sae(config.other_sae)  # loaded again for use: what is wrong with it shows before the other parts have run


def run(subject: Subject, config: Any) -> dict[str, Any]:
    """``saelora.evals.faithfulness`` on the subject.

    Raises:
        InputError: other_sae sits elsewhere than the adapter's SAEs, or is for another model.
    """
    other = _other(subject, config) if config.other_sae else None
    rows, context = subject.rows, subject.rows.shape[1]
    ablation_rows = max(2, config.ablation_tokens // context)
    with subject.console.progress("faithfulness", n_tokens_run(rows, ablation_rows)) as bar:
        found = faithfulness(
            subject.model,
            subject.spliced,
            subject.token_mask,
            rows,
            other=other,
            draws=config.ablation_draws,
            ablation_rows=ablation_rows,
            autocast=subject.autocast,
            progress=bar.advance,
        )
    if other is not None:
        found["other_sae"] = {"ref": config.other_sae, **found["other_sae"]}
    return found


def _other(subject: Subject, config: Any) -> tuple[Hookpoint, SAE]:
    loaded = load_sae(config.other_sae, device=pick_device(config.device))
    own = subject.spliced.saes
    if loaded.hookpoint not in own:
        where = " and ".join(map(str, own))
        raise InputError(
            f"other_sae {config.other_sae} sits at {loaded.hookpoint}, the adapter's at {where}: give one from there"
        )
    check_fits(loaded, subject.assembled.anatomy.width(loaded.hookpoint))
    return loaded.hookpoint, loaded.sae  # type: ignore[return-value]
