"""--parts tokens: losses token by token, and the text that they are of."""

import numpy as np

from saelora.evals.subject import Subject
from saelora.evals.tokens.options import Options
from saelora.evals.tokens.passages import extreme, show, vocabulary, whole_rows
from saelora.evals.tokens.per_token import lowest, per_token, summarise
from saelora.evals.tokens.result import Extremes, Tokens
from saelora.models.anatomy import anatomy_of


def run(subject: Subject, config: Options) -> Tokens:
    """Losses of every held-out prediction, their distribution, and passages; see saelora.evals.tokens, .passages."""
    count_V, counted_on = _frequencies(subject, config)
    with subject.console.progress("tokens", subject.rows.numel()) as bar:
        found = per_token(subject, subject.rows, progress=bar.advance)
    places = {
        "most_helped": extreme(found, config.passages, helped=True),
        "most_hurt": extreme(found, config.passages, helped=False),
        "text": whole_rows(found, config.text_rows),
    }
    n_rows = len({row for some in places.values() for row, *_ in some})
    with subject.console.progress("likeliest tokens", n_rows, "rows") as bar:
        shown = show(subject, found, places, progress=bar.advance)
    return Tokens(
        **vars(summarise(found, count_V)),
        trained=subject.trained,
        frequency_counted_on=counted_on,
        recon_error_of=str(lowest(subject.spliced)),
        vocab=vocabulary([passage for some in shown.values() for passage in some], subject.tokenizer),
        passages=Extremes(shown["most_helped"], shown["most_hurt"]),
        text=shown["text"],
    )


def _frequencies(subject: Subject, config: Options) -> tuple[np.ndarray | None, str]:
    """How often each token id occurs in training text [d_vocab], and what it was counted on."""
    if config.frequency_tokens == 0:
        return None, "nothing"
    rows = subject.training_rows(config.frequency_tokens)
    count_V = np.bincount(rows.flatten().numpy(), minlength=anatomy_of(subject.model).d_vocab)
    return count_V, f"{rows.numel():,} tokens of the training part of {subject.data.data}"
