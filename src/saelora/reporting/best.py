"""Of several results the best, in one sentence that claims no more than their intervals allow."""

from collections.abc import Sequence

from saelora.evals.loss_result import LossFigures
from saelora.identity import BOTH, SAE, TRANSCODER, About, groups, kind_of
from saelora.reporting.text import closed

Named = tuple[str, LossFigures]
_COSTS = {SAE: "SAE costs", TRANSCODER: "transcoders cost", BOTH: "splice costs"}
_WHOSE = {SAE: "the SAE's", TRANSCODER: "the transcoders'", BOTH: "the splice's"}


def best(given: Sequence[Named], what: str, abouts: Sequence[About | None]) -> str:
    """Which wins back most of what is lost to what it has spliced in, and the next one.

    Args:
        what: they are, such as "runs".
        abouts: on what each was measured: those that do not compare are not ranked.
    """
    n, ranked, letters = f"{len(given)} {what}", ranking(given), set(groups(abouts))
    kind = kind_of(*(sae for about in abouts if about is not None for sae in about.saes))
    its = _COSTS[kind]
    if not ranked:
        return f"None of {n} has a gap of which a share could be stated."
    told = [f"{name} {closed(figures)}" for name, figures in ranked]
    if len(letters - {"?"}) > 1:
        return f"{n}, whose figures do not all compare; shares of {_WHOSE[kind]} cost won back: {_listed(told)}."
    unknown = "; whether they compare is unknown" if "?" in letters and len(given) > 1 else ""
    (name, first), among = ranked[0], f"Of {n}, "
    if (first.gap_closed or 0.0) < 0:
        return f"{among}none wins back anything of what its {its}: {_listed(told)}{unknown}."
    if (first.interval("gap_closed") or [first.gap_closed or 0.0])[0] <= 0:
        said = f"{name} wins back most of what its {its}, but that cannot be told from nothing: {closed(first)}"
        return f"{among}{said}{unknown}."
    said = f"{among}{name} wins back most of what its {its}: {closed(first)}"
    if len(ranked) == 1:
        others = "; of the others no share can be stated" if len(given) > 1 else ""
        return f"{said}{others}{unknown}."
    near = "; their intervals overlap" if _overlap(first, ranked[1][1]) else ""
    return f"{said}; next {told[1]}{near}{unknown}."


def ranking(given: Sequence[Named]) -> list[Named]:
    """Those of which a share of the gap can be stated, the largest first."""
    known = [(name, figures) for name, figures in given if closed(figures) is not None]
    return sorted(known, key=lambda each: -(each[1].gap_closed or 0.0))


def _overlap(first: LossFigures, other: LossFigures) -> bool:
    one, two = first.interval("gap_closed"), other.interval("gap_closed")
    return one is not None and two is not None and two[1] >= one[0]


def _listed(told: Sequence[str], n: int = 2) -> str:
    return "; ".join([*told[:n], *([f"and {len(told) - n} more"] if len(told) > n else [])])
