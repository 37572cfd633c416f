"""The text that the page lets one read token by token -> JSON for its script."""

from collections.abc import Sequence
from typing import Any

from saelora.evals.tokens.result import Passage, Tokens
from saelora.evals.variant import SIDE_BY_SIDE
from saelora.reporting.format import finite
from saelora.reporting.page.read import Run

ROWS = 20  # whole rows in a page, of all runs together: a row of 512 tokens takes about 150 kB
LONGEST = 200  # characters of a token that are shown


def payload(runs: Sequence[Run]) -> dict[str, Any]:
    """Passages of every run that has some; probabilities become whole per mille."""
    found = [(run, result) for run in runs if (result := run.result(Tokens)) is not None]
    each = max(1, ROWS // max(1, len(found)))
    return {"runs": [_run(run, result, each) for run, result in found]}


def _run(run: Run, result: Tokens, n_rows: int) -> dict[str, Any]:
    groups = {
        "most_helped": result.passages.most_helped,
        "most_hurt": result.passages.most_hurt,
        "text": result.text[:n_rows],
    }
    passages = [_passage(passage, group) for group, some in groups.items() for passage in some]
    used = {i for p in passages for i in p["ids"]}
    used |= {i for p in passages for top in p["top"] if top for likeliest in top for i in (likeliest or [])[::2]}
    return {
        "label": run.label,
        "vocab": {i: _token(result.vocab.get(str(i))) for i in sorted(used)},
        "passages": passages,
    }


def _token(text: str | None) -> Any:
    """A token's text; of a long one its beginning and its length; None where it is not known."""
    return text if text is None or len(text) <= LONGEST else [text[:LONGEST], len(text)]


def _passage(passage: Passage, group: str) -> dict[str, Any]:
    return {
        "group": group,
        "row": passage.row,
        "start": passage.start,
        "focus": passage.focus,
        "ids": passage.ids,
        "counted": [int(each) for each in passage.counted],
        "ce": [_numbers(passage.ce[variant]) for variant in SIDE_BY_SIDE],
        "kl": [_numbers(passage.kl[variant]) for variant in SIDE_BY_SIDE[1:]],
        "error": _numbers(passage.recon_error),
        "top": [_tops(each) for each in zip(*(passage.top[variant] for variant in SIDE_BY_SIDE), strict=True)],
    }


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    """Numbers with 4 digits after the point; None where there is none."""
    return [None if (x := finite(value)) is None else round(x, 4) for value in values]


def _tops(by_model: Sequence[Sequence[tuple[int, float]] | None]) -> list[list[int] | None] | None:
    """[id, per mille, id, per mille, ...] of each model."""
    if not any(by_model):
        return None
    return [[x for i, p in top for x in (i, round(1000 * p))] if top else None for top in by_model]
