"""Passages as a person reads them: each token's losses under the three models, and what each expected instead.

Shapes: R rows, P predictions of a row, S tokens of a row (P + 1), C tokens of a chunk, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelora.core.head import Head
from saelora.core.kl_head import chunk_size
from saelora.evals.spliced import SplicedModel
from saelora.evals.tokens.per_token import PerToken, together, unobserved
from saelora.evals.tokens.result import Passage
from saelora.evals.variant import Variant

WINDOW = 48  # tokens of a passage
BEFORE = 36  # of which before the token that it is shown for, where the row has as many
LIKELIEST = 5  # next tokens
Likeliest = dict[Variant, list[list[tuple[int, float]]]]  # after each position of a row
Place = tuple[int, int, int, int | None]  # row, start, end, the token it is shown for


def extreme(found: PerToken, n_passages: int, *, helped: bool) -> list[Place]:
    """Windows around the predictions that the adapter changed most, the most changed first; none overlap."""
    change_RP = np.where(found.counted, found.change, 0.0)
    change_RP = change_RP if helped else -change_RP
    n_tokens = found.ids.shape[1]
    window = min(WINDOW, n_tokens)
    chosen: list[Place] = []
    for flat in np.argsort(change_RP, axis=None, kind="stable"):
        row, prediction = (int(i) for i in np.unravel_index(flat, change_RP.shape))
        if len(chosen) == n_passages or change_RP[row, prediction] >= 0:
            break
        token = prediction + 1
        start = min(max(0, token - BEFORE), n_tokens - window)
        if all(row != r or start + window <= s or start >= e for r, s, e, _ in chosen):
            chosen.append((row, start, start + window, token))
    return chosen


def whole_rows(found: PerToken, n_rows: int) -> list[Place]:
    """Evenly spaced rows from start to end; all of them where there are fewer."""
    n_all, n_tokens = found.ids.shape
    n_rows = min(n_rows, n_all)
    return [(n_all * i // n_rows, 0, n_tokens, None) for i in range(n_rows)]


def show(
    subject: SplicedModel,
    found: PerToken,
    places: dict[str, list[Place]],
    *,
    progress: Callable[[int], None] = lambda n_rows: None,
) -> dict[str, list[Passage]]:
    """Passages in full, under the names of ``places``; each row that occurs is run once."""
    top = _likeliest_of_rows(subject, found, sorted({row for some in places.values() for row, *_ in some}), progress)
    return {name: [_passage(found, place, top[place[0]]) for place in some] for name, some in places.items()}


def _likeliest_of_rows(
    subject: SplicedModel, found: PerToken, numbers: list[int], progress: Callable[[int], None]
) -> dict[int, Likeliest]:
    """row -> model -> the likeliest tokens after each position."""
    students, plan = together(subject)
    top = {}
    with subject.batches(students, torch.from_numpy(found.ids[numbers]), 1, lambda n_tokens: progress(1)) as each:
        for number, batch in zip(numbers, each, strict=True):
            hidden = {variant: batch.hidden(student, unobserved)[0, :-1] for variant, student in plan.items()}
            top[number] = {v: _likeliest(students.head(plan[v]), h_PD) for v, h_PD in hidden.items()}
    return top


def _likeliest(head: Head, hidden_PD: Tensor) -> list[list[tuple[int, float]]]:
    """(id, probability) of the likeliest tokens after each position, the likeliest first."""
    out = []
    for chunk_CD in hidden_PD.split(chunk_size(len(head.weight), hidden_PD.device.type)):
        logits_CV = head.logits(chunk_CD)
        top = logits_CV.topk(min(LIKELIEST, logits_CV.shape[1]))
        p = (top.values - logits_CV.logsumexp(-1, keepdim=True)).exp()
        for ids, probabilities in zip(top.indices.tolist(), p.tolist(), strict=True):
            out.append([(i, round(q, 4)) for i, q in zip(ids, probabilities, strict=True)])
    return out


def _passage(found: PerToken, place: Place, top: Likeliest) -> Passage:
    row, start, end, token = place
    ce = {variant: found.values[variant.ce][row] for variant in top}
    kl = {variant: found.values[variant.kl][row] for variant in (Variant.SPLICED, Variant.ADAPTED)}

    def of_tokens(of_predictions: Any, form: Callable[[Any], Any]) -> list[Any]:
        return [None if i == 0 else form(of_predictions[i - 1]) for i in range(start, end)]

    return Passage(
        row=row,
        start=start,
        focus=None if token is None else token - start,
        ids=found.ids[row, start:end].tolist(),
        counted=[bool(i > 0 and found.counted[row, i - 1]) for i in range(start, end)],
        ce={variant: of_tokens(values, _rounded) for variant, values in ce.items()},
        kl={variant: of_tokens(values, _rounded) for variant, values in kl.items()},
        recon_error=of_tokens(found.recon_error[row], _rounded),
        top={variant: of_tokens(likeliest, list) for variant, likeliest in top.items()},
    )


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def vocabulary(passages: Iterable[Passage], tokenizer: Any) -> dict[str, str]:
    """The text of every token id that passages use."""
    used: set[int] = set()
    for passage in passages:
        used.update(passage.ids)
        used.update(i for of_model in passage.top.values() for some in of_model if some is not None for i, _ in some)
    return {str(i): token_text(tokenizer, i) for i in sorted(used)}


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token as it stands in text, its leading space included, which decoding it alone would drop."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if isinstance(piece, str) and "▁" in piece:  # SentencePiece's space
        return piece.replace("▁", " ")
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text or piece or f"<{token_id}>"
