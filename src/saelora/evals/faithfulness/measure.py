"""--parts faithfulness: does the adapted model read its SAEs, or go round them?"""

from dataclasses import replace

from saelora.core.splice import SAE, check_width
from saelora.errors import InputError
from saelora.evals.faithfulness.interventions import faithfulness, n_tokens_run
from saelora.evals.faithfulness.options import Options
from saelora.evals.faithfulness.result import Faithfulness
from saelora.evals.subject import Subject
from saelora.models.anatomy import anatomy_of, device_of
from saelora.models.hookpoints import Hookpoint
from saelora.saes.loading import load_sae


def run(subject: Subject, config: Options) -> Faithfulness:
    """``saelora.evals.faithfulness`` on the subject.

    Raises:
        InputError: other_sae sits elsewhere than the adapter's SAEs, or is for another model.
    """
    other = _other(subject, config.other_sae) if config.other_sae else None
    rows, context = subject.rows, subject.rows.shape[1]
    ablation_rows = max(2, config.ablation_tokens // context)
    with subject.console.progress("faithfulness", n_tokens_run(rows, ablation_rows)) as bar:
        found = faithfulness(
            subject,
            rows,
            other=other,
            draws=config.ablation_draws,
            ablation_rows=ablation_rows,
            progress=bar.advance,
        )
    if found.other_sae is None:
        return found
    return replace(found, other_sae=replace(found.other_sae, ref=config.other_sae))


def _other(subject: Subject, ref: str) -> tuple[Hookpoint, SAE]:
    loaded = load_sae(ref, device=device_of(subject.model))
    own = subject.spliced.saes
    if loaded.hookpoint not in own:
        where = " and ".join(map(str, own))
        raise InputError(f"other_sae {ref} sits at {loaded.hookpoint}, the adapter's at {where}: give one from there")
    check_width(anatomy_of(subject.model), loaded.hookpoint, loaded.sae)  # type: ignore[arg-type]
    return loaded.hookpoint, loaded.sae  # type: ignore[return-value]
