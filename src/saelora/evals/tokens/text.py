"""The text that the page lets one read token by token -> JSON for its script."""

from collections.abc import Sequence
from typing import Any

from saelora.report.page.read import Run
from saelora.report.page.view import finite

ROWS = 20  # whole rows in a page, of all runs together: a row of 512 tokens takes about 150 kB
LONGEST = 200  # characters of a token that are shown
_GROUPS = ("most_helped", "most_hurt", "text")
_ARMS = ("base", "sae", "adapted")


def payload(runs: Sequence[Run]) -> dict[str, Any]:
    """Passages of every run that has some; probabilities become whole per mille."""
    found = [(run, result) for run in runs if (result := run.part("tokens")) and result.get("passages")]
    each = max(1, ROWS // max(1, len(found)))
    return {"runs": [_run(run, result, each) for run, result in found]}


def _run(run: Run, result: dict[str, Any], n_rows: int) -> dict[str, Any]:
    shown = {**result["passages"], "text": result.get("text")}
    passages = [
        _passage(passage, group)
        for group in _GROUPS
        for passage in (shown.get(group) or [])[: n_rows if group == "text" else None]
    ]
    used = {i for p in passages for i in p["ids"]}
    used |= {i for p in passages for top in p["top"] if top for arm in top for i in (arm or [])[::2]}
    vocab = result.get("vocab") or {}
    return {"label": run.label, "vocab": {i: _token(vocab.get(str(i))) for i in sorted(used)}, "passages": passages}


def _token(text: str | None) -> Any:
    """A token's text; of a long one its beginning and its length; None where it is not known."""
    return text if text is None or len(text) <= LONGEST else [text[:LONGEST], len(text)]


def _passage(passage: dict[str, Any], group: str) -> dict[str, Any]:
    n = len(passage["ids"])
    top = passage.get("top") or {}
    by_arm = [top.get(arm) or [None] * n for arm in _ARMS]
    return {
        "group": group,
        "row": passage.get("row"),
        "start": passage.get("start"),
        "focus": passage.get("focus"),
        "ids": passage["ids"],
        "counted": [int(bool(each)) for each in passage.get("counted") or [True] * n],
        "ce": [_numbers((passage.get("ce") or {}).get(arm), n) for arm in _ARMS],
        "kl": [_numbers((passage.get("kl") or {}).get(arm), n) for arm in _ARMS[1:]],
        "error": _numbers(passage.get("recon_error"), n),
        "top": [_tops(each) for each in zip(*by_arm, strict=True)],
    }


def _numbers(values: Sequence[Any] | None, n: int) -> list[float | None]:
    """Numbers with 4 digits after the point; None where there is none."""
    return [None if (x := finite(value)) is None else round(x, 4) for value in values or [None] * n]


def _tops(arms: Sequence[Any]) -> list[Any] | None:
    """[id, per mille, id, per mille, ...] of each arm."""
    if not any(arms):
        return None
    return [[x for i, p in arm for x in (i, round(1000 * p))] if arm else None for arm in arms]
