"""Options of --parts steering."""

from pathlib import Path

from saelora.config import Configuration, Count, option
from saelora.errors import InputError
from saelora.evals.steering.user_texts import UserText, read_user_texts
from saelora.limits import NOT_NEGATIVE, POSITIVE, SHARE, Within, not_zero
from saelora.options import hookpoint


class Options(Configuration):
    """Steering"""

    steering_latents: tuple[int, ...] = option(
        (), "latents to steer along, by number; default: the most selective ones on held-out text", limit=NOT_NEGATIVE
    )
    steering_n: int = option(10, "how many latents to choose, where none are given", limit=POSITIVE)
    steering_rates: tuple[float, ...] = option(
        (0.02, 0.15),
        "least and greatest share of held-out passages in which a latent that is chosen fires",
        limit=SHARE,
    )
    steering_hookpoint: str | None = option(
        None, "the SAE whose latents are taken, default: the lowest one's", limit=hookpoint
    )
    steering_positives: str | None = option(
        None,
        'JSONL of texts that steering should make likelier, {"text": ..., "set": "tuning" or "test", "latent": ...}, '
        "set and latent optional; default: the held-out passages in which the latent fires most strongly",
    )
    steering_negatives: str | None = option(
        None, "JSONL of texts that steering should leave alone; default: held-out passages in which it never fires"
    )
    steering_scale: tuple[float, ...] = option(
        (0.25, 0.5, 1.0, 2.0),
        "strengths alpha to choose from for h + alpha (h.d) d, d the latent's direction",
        limit=not_zero,
    )
    steering_add: tuple[float, ...] = option(
        (0.03, 0.1, 0.3, 1.0),
        "strengths alpha to choose from for h + alpha s d, s the latent's peak activation",
        limit=not_zero,
    )
    steering_bos: bool = option(
        False,
        "steer exempt positions (BOS) too, as the paper does: their norms can be hundreds of times larger, and scaling "
        "them harms all texts alike (measured on the default model), so it is off",
    )
    steering_tokens: Count = option(
        60_000, "tokens of held-out text to look for latents and passages in", limit=Within(least=100)
    )
    steering_window: int = option(32, "tokens of a passage", limit=Within(least=8))
    steering_tuning_texts: int = option(
        8, "positives (and as many negatives) that choose alpha, at most", limit=POSITIVE
    )
    steering_test_texts: int = option(
        24, "positives (and as many negatives) that are compared, at most", limit=Within(least=2)
    )
    steering_samples: int = option(1, "prompts to continue for each latent", limit=NOT_NEGATIVE)


def check(config: Options) -> None:
    """Raise InputError for options that cannot be used, before anything is loaded."""
    rates = config.steering_rates
    if len(rates) != 2 or not 0 <= rates[0] <= rates[1] <= 1:
        raise InputError(f"steering_rates is {' '.join(map(str, rates))}, expected two shares such as 0.02 0.15")
    if not config.steering_scale and not config.steering_add:
        raise InputError("steering_scale and steering_add are both empty: give strengths for one of them at least")
    given_texts(config)


def given_texts(config: Options) -> dict[str, list[UserText] | None]:
    """The user's own texts for each side; None where they are to be found.

    Raises:
        InputError: a file cannot be read, or a text is on both sides.
    """
    paths = {"positives": config.steering_positives, "negatives": config.steering_negatives}
    given = {side: read_user_texts(Path(path)) if path else None for side, path in paths.items()}
    both = {g.text for g in given["positives"] or []} & {g.text for g in given["negatives"] or []}
    if both:
        raise InputError(f"{both.pop()[:60]!r} is among the positives and the negatives: leave it in one file only")
    return given
