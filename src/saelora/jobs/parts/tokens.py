"""--parts tokens: losses token by token, and the text that they are of."""

from typing import Any

import numpy as np

from saelora.assemble import VALIDATION_SEED, read_rows
from saelora.evals.passages import extreme, show, vocabulary, whole_rows
from saelora.evals.tokens import lowest, per_token, summarise
from saelora.jobs.parts import Subject


def run(subject: Subject, config: Any) -> dict[str, Any]:
    """Losses of every held-out prediction, their distribution, and passages; see saelora.evals.tokens, .passages."""
    count_V, counted_on = _frequencies(subject, config)
    with subject.console.progress("tokens", subject.rows.numel()) as bar:
        found = per_token(
            subject.model,
            subject.spliced,
            subject.token_mask,
            subject.rows,
            autocast=subject.autocast,
            progress=bar.advance,
            adapted=subject.adapted,
        )
    places = {
        "most_helped": extreme(found, config.passages, helped=True),
        "most_hurt": extreme(found, config.passages, helped=False),
        "text": whole_rows(found, config.text_rows),
    }
    n_rows = len({row for some in places.values() for row, *_ in some})
    with subject.console.progress("likeliest tokens", n_rows, "rows") as bar:
        shown = show(
            subject.model,
            subject.spliced,
            found,
            places,
            autocast=subject.autocast,
            progress=bar.advance,
            adapted=subject.adapted,
        )
    return {
        **summarise(found, count_V),
        "trained": subject.trained,
        "frequency_counted_on": counted_on,
        "recon_error_of": str(lowest(subject.spliced)),
        "vocab": vocabulary([passage for some in shown.values() for passage in some], subject.tokenizer),
        "passages": {name: shown[name] for name in ("most_helped", "most_hurt")},
        "text": shown["text"],
    }


def _frequencies(subject: Subject, config: Any) -> tuple[np.ndarray | None, str]:
    """How often each token id occurs in training text [d_vocab], and what it was counted on."""
    if config.frequency_tokens == 0:
        return None, "nothing"
    rows = read_rows(config, subject.assembled.loaded, config.frequency_tokens, "train", VALIDATION_SEED).input_ids
    count_V = np.bincount(rows.flatten().numpy(), minlength=subject.assembled.anatomy.d_vocab)
    return count_V, f"{rows.numel():,} tokens of the training part of {config.data}"
